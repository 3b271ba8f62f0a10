"""Engines: one network on DeepSpeed, with its optimizer, loss scale and gradient reduction.

deepspeed_config.py    DeepSpeed's settings
engine.py              DeepSpeed behind a narrow interface
fragments.py           Fragments
gradient_reduction.py  Averaging gradients over ranks at the end of an update
loss_scaling.py        What happens between a gradient and an update
"""
