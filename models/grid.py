"""Grids of settings: `--grid key=value,value,...`, one axis each, for sweeps of all kinds."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence

from models.config_io import ConfigError
from models.safe_files.documents import RepeatedKey, parse_json


def grid_points(grid: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return {name: {key: value}} of all points of a grid, the last axis running fastest.

    Args:
        grid: Axes like `seed=0,1,2`, or with a JSON list: `objective.unet.channel_mult=[[1],[2]]`.

    Raises:
        ConfigError: An axis is not of that form, or given twice, or two points have one name.
    """
    axes = [_parse_axis(text) for text in grid]
    keys = [axis[0][0] for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"--grid {key}=... is given twice; list all its values in one")
    choices = [dict(choice) for choice in itertools.product(*axes)]
    points = {_name(choice): choice for choice in choices}
    if len(points) < len(choices):
        raise ConfigError("two points of the grid have the same name; give distinct values")
    return points


def assignments(point: dict[str, str]) -> list[str]:
    """Return a point as `key=value` overrides."""
    return [f"{key}={value}" for key, value in point.items()]


def _name(point: dict[str, str]) -> str:
    parts = (f"{key.rpartition('.')[2]}_{value}" for key, value in point.items())
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts))


def _parse_axis(text: str) -> list[tuple[str, str]]:
    key, separator, values = text.partition("=")
    if not separator or not key or not values:
        raise ConfigError(f"--grid {text!r} is not like key=value,value,...")
    try:
        listed = parse_json(values)
    except RepeatedKey as error:
        raise ConfigError(f"--grid {key}: {error}") from None
    except (ValueError, RecursionError):
        listed = None
    if isinstance(listed, list):
        if not listed:
            raise ConfigError(f"--grid {key}=[] has no value; list at least one")
        return [(key, json.dumps(value)) for value in listed]
    return [(key, value) for value in values.split(",")]
