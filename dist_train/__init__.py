"""Distributed training: one loop for every objective, sharded by DeepSpeed, exactly resumable.

build.py          From a configuration to a run: each part gets its own group of settings
commands.py       What `train RECIPE`, `plan` and `list` do
completion.py     What a shell may insert for RECIPE and key=value
config.py         The configuration of a run: frozen dataclasses that validate themselves
config_groups.py  Its settings by concern: sharding, compute, checkpoints, logging, divergence
ema.py            Exponential moving averages of the sampled network, sharded like its optimizer
ema_posthoc.py    `relaywave train ema RUN`: averages of other lengths, made after training
ema_profiles.py   How an exponential moving average weighs the past, as pure functions of images
examples.py       Micro-batches of images as losses take them, from any place in the global order
precision.py      What networks compute in, and how float32 mathematics is done
schedules.py      Learning rates as pure functions of images seen
snapshots.py      Snapshots of a run's averages, and grids of samples from them
train.py          One process of a training: from a configuration to an exit code
trainer.py        The training loop, one for every objective
checkpoint/       Checkpoints: all state of a run, sharded, hashed, elastic
dry_run/          Validating a run before it starts, and a few steps of it beside the plan
engine/           Engines
monitoring/       What is seen of a run: metrics, loggers, divergence, profiles, status
planning/         What a run needs, from data-less tensors, and whether its settings fit together
recipes/          Recipes: documented functions that return complete run configurations
runtime/          Processes: ranks, signals, hangs, and the run directory that one of them writes
"""
