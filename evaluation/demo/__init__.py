"""`relaywave demo`: samples of models in a browser.

model.py  A model that draws with other settings at each call, and its states
page.py   The page, by gradio: controls, samples and states of one model or two
"""
