"""Precision: it belongs to the networks, whose configurations name what they compute in.

`RunConfig.precision` sets them all. `auto` is settled when a run begins and recorded with it, so
that a run that goes on elsewhere keeps its precision.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import torch

from dist_train.config import RunConfig
from models.config_io import ConfigError

_NAMES = ("compute_dtype", "dtype")


def compute_dtypes(config: Any) -> set[str]:
    """Return the names of all dtypes that an objective's networks compute in."""
    found: set[str] = set()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in _NAMES:
            found.add(value)
        elif dataclasses.is_dataclass(value):
            found |= compute_dtypes(value)
    return found


def settle_precision(config: RunConfig, bfloat16: bool) -> RunConfig:
    """Return a configuration whose networks compute in its `precision`, `auto` replaced.

    Args:
        config: Any configuration.
        bfloat16: Whether it is to run on devices that have bfloat16.
    """
    precision = config.precision
    if precision == "auto":
        if compute_dtypes(config.objective) != {"float32"}:
            precision = None
        else:
            precision = "bfloat16" if bfloat16 else "float32"
    objective = (
        config.objective if precision is None else _computing_in(precision, config.objective)
    )
    return replace(config, precision=precision, objective=objective)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device is a GPU with bfloat16 units."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _computing_in(precision: str, config: Any) -> Any:
    """Return a configuration all of whose networks compute in one dtype."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in _NAMES:
            changes[field.name] = precision
        elif dataclasses.is_dataclass(value):
            changes[field.name] = _computing_in(precision, value)
    return replace(config, **changes)


def check_precision(config: Any, device: torch.device) -> None:
    """Refuse a precision that the device lacks.

    Raises:
        ConfigError: bfloat16 on a GPU that only emulates it.
    """
    if device.type != "cuda" or "bfloat16" not in compute_dtypes(config):
        return
    if not has_bfloat16(device):
        raise ConfigError(
            f"the networks compute in bfloat16, which {torch.cuda.get_device_name(device)} lacks;"
            " set precision=float16 or precision=float32"
        )
