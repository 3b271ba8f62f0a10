"""`--debug`: every experiment at the size of minutes, on the embedded photographs.

The same recipes with small networks, few images and few steps: what is checked is that all of an
experiment works, from the packing to the figure. Values mean nothing.
"""

from __future__ import annotations

import dataclasses

from dist_train.config import RunConfig
from models.rdm.config import EdmConfig, RelayConfig
from models.wavediff.config import WaveDiffConfig
from slurm.paper.experiments import Entry, Experiment

DEBUG = "debug"
"""Directory below the root, so that nothing tiny is taken for an experiment."""
NOTE = (
    "Debug: tiny networks, trained for seconds on the embedded photographs, with a detector that is"
    " not Inception. The values show that the experiment runs, and nothing about the papers."
)
STAGE1, EDGE = 8, 32
"""Edges of the images of stage 1, and of all other models."""
IMAGES = 32
CLASSES = 8
BATCH = 8
TOTAL = 32
"""Images that a run trains on; snapshots are written every half of them."""
SEEDS = "0-7"
POINTS = 2
"""Values of a grid, budgets, and snapshots of a training that are evaluated."""
PACK = ("--subset", str(IMAGES), "--workers", "1")
DETECTOR = ("--detector", "effnet_lite0", "--metrics", "fd:block4,pr:block4", "--batch-size", "8")
COLUMNS = {
    "fid": "fd_effnet_lite0_block4.distance",
    "precision": "pr_effnet_lite0_block4.precision",
    "recall": "pr_effnet_lite0_block4.recall",
}
"""Where columns of the papers' tables are taken from."""
TITLES = {
    "fid": "fd:block4 (no FID)",
    "precision": "pr:block4 precision",
    "recall": "pr:block4 recall",
}
"""What those values are called."""
TIMES = ("--batch-size", "2", "--warm-up", "1", "--repeats", "2")

_RUN = (
    "total_images=32", "global_batch_size=8", "micro_batch_size=null", "sharding.nodes=1",
    "sharding.gpus_per_node=1", "checkpoint.every_images=32", "checkpoint.snapshot_every_images=16",
    "logging.every_images=16", "logging.grid_seeds=0", "compute.precision=float32",
    "compute.cudnn_benchmark=false",
)  # fmt: skip
_UNET = (
    "objective.unet.model_channels=8", "objective.unet.channel_mult=[1,2]",
    "objective.unet.num_blocks=1", "objective.unet.attn_resolutions=[]",
    "objective.unet.compute_dtype=float32",
)  # fmt: skip
_GAN = (
    "objective.generator.base_channels=8", "objective.generator.channel_multipliers=[1,2]",
    "objective.generator.blocks_per_level=1", "objective.generator.attention_resolutions=[]",
    "objective.generator.latent_dim=8", "objective.generator.embedding_dim=16",
    "objective.generator.mapping_layers=1", "objective.discriminator.kind=small",
    "objective.discriminator.layers=3", "objective.discriminator.base_channels=8",
    "objective.discriminator.embedding_dim=16", "objective.discriminator.stddev_group=2",
)  # fmt: skip


def tiny(config: RunConfig) -> list[str]:
    """Return the settings that make a recipe's run tiny."""
    objective = config.objective
    if isinstance(objective, WaveDiffConfig):
        return [*_RUN, *_GAN, f"objective.resolution={EDGE}", f"data.resolution={EDGE}"]
    assert isinstance(objective, EdmConfig | RelayConfig)
    edge = STAGE1 if isinstance(objective, EdmConfig) else EDGE
    classes = CLASSES if objective.label_dim else 0
    sizes = [f"objective.unet.resolution={edge}", f"data.resolution={edge}"]
    return [
        *_RUN, *_UNET, *sizes, f"objective.unet.label_dim={classes}",
        f"objective.sampling.steps={4 if edge == STAGE1 else 12}",
    ]  # fmt: skip


def shortened(experiment: Experiment) -> Experiment:
    """Return an experiment with few values of grids and budgets."""
    entries = tuple(_shortened(entry) for entry in experiment.entries)
    return dataclasses.replace(experiment, entries=entries)


def _shortened(entry: Entry) -> Entry:
    key, _, values = entry.grid.partition("=")
    grid = f"{key}={','.join(values.split(',')[:POINTS])}" if entry.grid else ""
    return dataclasses.replace(entry, grid=grid, budgets=entry.budgets[:POINTS])
