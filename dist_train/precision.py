"""Precision: it belongs to the networks, whose configurations name what they compute in."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

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


def check_precision(config: Any, device: torch.device) -> None:
    """Refuse a precision that the device lacks.

    Raises:
        ConfigError: bfloat16 on a GPU that only emulates it.
    """
    if device.type != "cuda" or "bfloat16" not in compute_dtypes(config):
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"the networks compute in bfloat16, which {torch.cuda.get_device_name(device)} lacks;"
            " set their compute_dtype (WaveDiff: dtype) to float16 or float32"
        )
