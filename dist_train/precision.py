"""Precision: it belongs to the networks, whose configurations name what they compute in.

`compute.precision` sets them all. `auto` is settled when a run starts and recorded with it, so that
a run that continues elsewhere keeps its precision.
"""

from __future__ import annotations

import typing
from collections.abc import Collection
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from dist_train.config import ComputeConfig, RunConfig
from models.config_io import ConfigError
from models.layers import ComputeDtype


def compute_dtypes(config: Any) -> set[str]:
    """Return the names of all dtypes that an objective's networks compute in."""
    found = {getattr(config, name) for name in _settings_of_dtype(config)}
    return found.union(*(compute_dtypes(group) for group in _groups(config).values()))


def settle_precision(config: RunConfig, bfloat16: bool) -> RunConfig:
    """Return a configuration whose networks compute in its `precision`, `auto` replaced.

    Args:
        config: Any configuration.
        bfloat16: Whether it is to run on devices that have bfloat16.
    """
    precision = config.compute.precision
    if precision == "auto":
        if compute_dtypes(config.objective) != {"float32"}:
            precision = None
        else:
            precision = "bfloat16" if bfloat16 else "float32"
    objective = (
        config.objective if precision is None else _computing_in(precision, config.objective)
    )
    compute = replace(config.compute, precision=precision)
    return replace(config, compute=compute, objective=objective)


def set_float32_mode(compute: ComputeConfig) -> None:
    """Set this process' flags of TF32 and of cuDNN's choice of algorithms, before anything runs."""
    if compute.tf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = compute.tf32
        torch.backends.cudnn.allow_tf32 = compute.tf32
    torch.backends.cudnn.benchmark = compute.cudnn_benchmark


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device is a GPU with bfloat16 units."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _computing_in(precision: str, config: Any) -> Any:
    """Return a configuration all of whose networks compute in one dtype."""
    changes = {name: _computing_in(precision, group) for name, group in _groups(config).items()}
    return replace(config, **changes, **dict.fromkeys(_settings_of_dtype(config), precision))


def _settings_of_dtype(config: Any) -> list[str]:
    """Return the names of a dataclass's settings that are compute dtypes, found by their type."""
    hints = typing.get_type_hints(type(config))
    return [field.name for field in fields(config) if hints[field.name] == ComputeDtype]


def _groups(config: Any) -> dict[str, Any]:
    """Return the groups of settings in a dataclass by name."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: value for name, value in values.items() if is_dataclass(value)}


def check_precision(dtypes: Collection[str], device: torch.device) -> None:
    """Reject a precision that the device lacks.

    Raises:
        ConfigError: bfloat16 on a GPU that only emulates it.
    """
    if device.type != "cuda" or "bfloat16" not in dtypes:
        return
    if not has_bfloat16(device):
        raise ConfigError(
            f"the networks compute in bfloat16, which {torch.cuda.get_device_name(device)} lacks;"
            " set compute.precision=float16 or compute.precision=float32"
        )
