"""`relaywave train export RUN OUT`: a run's newest checkpoint in DeepSpeed's own format.

DeepSpeed's format is an export and nothing that a run reads: it has no hashes, a flipped byte
loads silently, a lost `latest` file means a fresh start, and ZeRO's files fit one number of ranks
only (docs/reference/deepspeed.md#4.4, #4.5). Written is the layout without ZeRO, which does not
depend on ranks: one directory per network, with the weights, Adam's moments and the counters, for
`DeepSpeedEngine.load_checkpoint` (under ZeRO with `load_module_only=True`). The files are pickles,
because DeepSpeed reads nothing else; they hold tensors and plain values only, so that
`torch.load(..., weights_only=True)` reads them as well.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.checkpoint.format import (
    CheckpointReader,
    checkpoint_path,
    find_newest_complete,
    find_problems,
)
from dist_train.config import AdamConfig
from dist_train.runtime.run_dir import read_run_config
from dist_train.runtime.world import World
from models.config_io import ConfigError

MOMENTS = ("exp_avg", "exp_avg_sq")


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.description = (
        "Write the newest complete checkpoint in DeepSpeed's format, one directory per"
        " network: weights, Adam's moments, counters. Averages are in the run's snapshots."
    )
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("out", type=Path, help="a new directory")
    parser.add_argument("--at", type=int, help="images seen of an older checkpoint")
    parser.set_defaults(run_command=export_command)


def export_command(options: argparse.Namespace) -> int:
    """Write a checkpoint in DeepSpeed's format; returns the exit code.

    Raises:
        ConfigError: There is no such run or checkpoint, it is damaged, or OUT exists.
    """
    if options.out.exists():
        raise ConfigError(f"{options.out} exists; name a new directory")
    config = read_run_config(options.run)
    reader = CheckpointReader(_find(options.run, options.at))
    for name, network in config.objective.build().build_networks().items():
        tag = f"global_step{reader.state.updates[name]}"
        tag_dir = options.out / name / tag
        tag_dir.mkdir(parents=True)
        states = model_states(reader, name, network, config.optim[name])
        torch.save(states, tag_dir / "mp_rank_00_model_states.pt")
        (options.out / name / "latest").write_text(tag)
        print(f"{options.out / name}: {name} after {reader.state.images_seen:,} images")
    return 0


def model_states(
    reader: CheckpointReader, name: str, network: nn.Module, adam: AdamConfig
) -> dict[str, Any]:
    """Return what DeepSpeed keeps of a network that is not sharded.

    Args:
        reader: Of the checkpoint.
        name: Name of the network.
        network: The module, for its parameters' names, order and shapes, and its buffers.
        adam: Settings of its optimizer.
    """
    shapes = {key: parameter.shape for key, parameter in network.named_parameters()}
    weights = {key: _whole(reader, f"{name}/weight/{key}", s) for key, s in shapes.items()}
    updates = reader.state.updates[name]
    moments = {
        index: {
            "step": torch.tensor(float(updates)),
            **{kind: _whole(reader, f"{name}/{kind}/{key}", shape) for kind in MOMENTS},
        }
        for index, (key, shape) in enumerate(shapes.items())
        if updates
    }
    template = torch.optim.Adam(network.parameters(), lr=adam.lr, betas=adam.betas, eps=adam.eps)
    scale = reader.state.loss_scales.get(name, {})
    return {
        "module": {**network.state_dict(), **weights},
        "optimizer": {"state": moments, "param_groups": template.state_dict()["param_groups"]},
        "param_shapes": [{key: list(shape) for key, shape in shapes.items()}],
        "buffer_names": [key for key, _ in network.named_buffers()],
        "lr_scheduler": None,
        "sparse_tensor_module_names": [],
        "skipped_steps": int(scale.get("skipped", 0)),
        "global_steps": updates,
        "global_samples": reader.state.images_seen,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "relaywave": asdict(reader.state),
    }


def _whole(reader: CheckpointReader, tensor: str, shape: torch.Size) -> Tensor:
    flat = torch.empty(shape.numel())
    reader.read(tensor, 0, flat)
    return flat.view(shape)


def _find(run_dir: Path, at: int | None) -> Path:
    """Return a complete checkpoint. Raises ConfigError if there is none."""
    alone = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    if at is None:
        newest, _ = find_newest_complete(run_dir, alone)
        if newest is None:
            raise ConfigError(f"{run_dir} has no checkpoint yet")
        return newest
    path = checkpoint_path(run_dir, at)
    if problems := find_problems(path, alone):
        raise ConfigError("; ".join(problems))
    return path
