"""Engines: one network on DeepSpeed, with its optimizer, loss scale and gradient reduction.

deepspeed_config.py    DeepSpeed's settings, ours and the user's; which stage can train what
engine.py              DeepSpeed behind a narrow interface: one engine per network
gradient_reduction.py  Averaging gradients over ranks at the end of an update
loss_scaling.py        What happens between a gradient and an update
self_check.py          At the start: what would be saved is what is trained
shards.py              Parameter shards: the ranges of parameters that a rank holds
user_settings.py       Which of DeepSpeed's settings a user may give, and why not the others
"""
