"""A recipe that trains a small flow in a minute."""

from __future__ import annotations

from data_pipelines.pipeline import DataConfig
from dist_train.config import AdamConfig, CheckpointConfig, HalflifeEma, LoggingConfig, RunConfig
from dist_train.recipes import recipe
from models.rdm.unet import UNetConfig
from relaywave_flow.flow import FlowConfig


@recipe
def flow_debug() -> RunConfig:
    """Flow matching at 16x16 on generated images, for tests."""
    unet = UNetConfig(
        resolution=16, model_channels=16, channel_mult=(1, 2), num_blocks=1, label_dim=4
    )
    return RunConfig(
        objective=FlowConfig(unet=unet),
        data=DataConfig(backend="synthetic", resolution=16, flip=True),
        optim={"velocity": AdamConfig(lr=1e-3)},
        ema={"main": HalflifeEma(halflife_images=64)},
        total_images=64,
        global_batch_size=16,
        checkpoint=CheckpointConfig(every_images=32, snapshot_every_images=64),
        logging=LoggingConfig(every_images=16),
    )
