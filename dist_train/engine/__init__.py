"""Engines: one network on DeepSpeed, with its optimizer, loss scale and gradient reduction.

deepspeed_config.py    DeepSpeed's settings: ours, the user's, and what cannot go together
engine.py              DeepSpeed behind a narrow interface: one engine per network
gradient_reduction.py  Averaging gradients over ranks at the end of an update
loss_scaling.py        What happens between a gradient and an update
shards.py              Parameter shards: the ranges of parameters that a rank holds
"""
