"""Part b: training through DeepSpeed on one device, by ZeRO stage; resume; seeds over splits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dist_train.build import build_trainer
from dist_train.config import CheckpointConfig, LoggingConfig, RunConfig, ShardingConfig
from dist_train.engine import engine as engine_module
from dist_train.precision import settle_precision
from dist_train.runtime.world import World
from dist_train.trainer import Outcome as Ending
from models.sample_rng import SampleStreams
from tests.dist_train.test_trainer import whole_tensors
from tests.gpu.cases import build_sampler, wake
from tests.gpu.device import Device, float32_mode
from tests.gpu.ledger import Outcome, Task
from tests.tiny import BATCH, TINY

STEPS = 4
STAGES = {"tiny_edm": (0, 1, 2, 3), "tiny_relay": (0, 1, 2, 3), "tiny_wavediff": (0, 1, 2)}
SAME = 2e-5
"""What another summation order may change, of the largest weight of a tensor."""


def tasks(debug: bool) -> list[Task]:
    del debug
    checks = []
    for name in TINY:
        checks += [
            Task("b", f"resume/{name}", partial(check_resume, name)),
            Task("b", f"zero/{name}", partial(check_stages, name)),
            Task("b", f"splits/{name}", partial(check_splits, name)),
            Task("b", f"seeds/{name}", partial(check_seeds, name)),
        ]
    return checks


def check_resume(name: str, device: Device, work: Path) -> Outcome:
    """Compare a run with one that was interrupted, bit by bit, in float32 and in bfloat16."""
    outcome = Outcome()
    for precision in ("float32", "bfloat16"):
        at_once = trained(short(name, precision), device, work / precision / "at_once")
        resumed_dir = work / precision / "resumed"
        trained(short(name, precision, steps=STEPS // 2), device, resumed_dir)
        resumed = trained(short(name, precision), device, resumed_dir)
        outcome.bound(f"{precision}/largest_difference", difference(at_once, resumed), 0.0)
    return outcome


def check_stages(name: str, device: Device, work: Path) -> Outcome:
    """Compare the weights that each ZeRO stage trains; one rank really shards here."""
    outcome, reference = Outcome(), {}
    for stage in STAGES[name]:
        sharding = ShardingConfig(zero_stage=stage)  # type: ignore[arg-type]
        config = replace(short(name, "float32"), sharding=sharding)
        with mock.patch.object(engine_module, "used_stage", lambda *_, stage=stage: stage):
            weights = trained(config, device, work / f"zero{stage}")
        reference = reference or weights
        outcome.bound(f"zero{stage}", difference(weights, reference), SAME)
    return outcome


def check_splits(name: str, device: Device, work: Path) -> Outcome:
    """Compare training in one pass a step with several."""
    config = short(name, "float32")
    runs = [
        trained(replace(config, micro_batch_size=micro), device, work / f"micro{micro}")
        for micro in (BATCH, 2)
    ]
    outcome = Outcome()
    outcome.bound("largest_difference", difference(*runs), SAME)
    return outcome


def check_seeds(name: str, device: Device, work: Path) -> Outcome:
    """Compare the images of eight seeds drawn at once, by pairs and one by one."""
    del work
    torch.manual_seed(0)
    config = short(name, "float32").objective
    objective = config.build()
    network = objective.build_networks()[objective.sampled_network]
    sampler = build_sampler(config, wake(network).to(device.torch_device))
    labels = torch.arange(8) % config.label_dim if config.label_dim else None

    def images(batch: int) -> Tensor:
        parts = []
        for start in range(0, 8, batch):
            draws = SampleStreams(range(start, start + batch), device.torch_device)
            some = None if labels is None else labels[start : start + batch]
            with torch.inference_mode():
                parts.append(sampler.generate(draws, _moved(some, device)))
        return torch.cat(parts).float().cpu()

    outcome = Outcome()
    with float32_mode(tf32=False):
        at_once = images(8)
        for batch in (2, 1):
            error = float((images(batch) - at_once).abs().max() / at_once.abs().max())
            outcome.bound(f"batches_of_{batch}", error, 1e-4)
    return outcome


def short(name: str, precision: str, steps: int = STEPS) -> RunConfig:
    """Return a run of a few steps that saves at its end."""
    config = replace(
        TINY[name](),
        total_images=steps * BATCH,
        logging=LoggingConfig(every_images=BATCH, grid_seeds=0),
        checkpoint=CheckpointConfig(every_images=10**9, snapshot_every_images=10**9),
    )
    compute: Any = replace(config.compute, precision=precision, tf32=False)
    return settle_precision(replace(config, compute=compute), bfloat16=True)


def trained(config: RunConfig, device: Device, run_dir: Path) -> dict[str, Tensor]:
    """Train to the end, resuming what is in the directory, and return all saved tensors."""
    run_dir.mkdir(parents=True, exist_ok=True)
    world = World(0, 0, 1, device.torch_device)
    with float32_mode(tf32=False):
        trainer = build_trainer(config, run_dir, world)
        try:
            assert trainer.fit() is Ending.FINISHED
        finally:
            for engine in trainer.engines.values():
                engine.close()
    return whole_tensors(run_dir)


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the largest difference of two states, relative to a tensor's largest entry."""
    assert a.keys() == b.keys()
    return max(
        float((a[name] - b[name]).abs().max()) / max(1.0, float(a[name].abs().max())) for name in a
    )


def _moved(labels: Tensor | None, device: Device) -> Tensor | None:
    return None if labels is None else labels.to(device.torch_device)
