"""Distributed training: one loop for every objective, sharded by DeepSpeed, exactly resumable.

build.py          From a configuration to the parts of a run
commands.py       What `train RECIPE` and `list` do
completion.py     What a shell may insert for RECIPE and key=value
config.py         The configuration of a run: frozen dataclasses that validate themselves
config_groups.py  Its settings by concern: sharding, compute, checkpoints, logging, divergence
ema.py            Exponential moving averages of the sampled network, sharded like its optimizer
ema_posthoc.py    `relaywave train ema RUN`: averages of other lengths, made after training
ema_profiles.py   How an exponential moving average weighs the past, as pure functions of images
precision.py      Precision
schedules.py      Learning rates as pure functions of images seen
snapshots.py      What a run leaves for others
train.py          One process of a training: from a configuration to an exit code
trainer.py        The training loop, one for every objective
checkpoint/       Checkpoints: all state of a run, sharded, hashed, elastic
engine/           Engines
monitoring/       What is seen of a run: metrics, loggers, divergence, profiles, status
planning/         What a run needs: memory, traffic, operations and time, from data-less tensors
recipes/          Recipes: documented functions that return complete run configurations
runtime/          Processes: ranks, signals, hangs, and the run directory that one of them writes
"""
