"""Precision: one setting reaches every network, whatever its setting is called."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from dist_train.config import ComputeConfig
from dist_train.precision import compute_dtypes, settle_precision
from models.layers import ComputeDtype
from tests.tiny import TINY


@dataclass(frozen=True, kw_only=True)
class Network:
    computes_in: ComputeDtype = "float32"
    state_dtype: str = "float64"


@dataclass(frozen=True, kw_only=True)
class Pair:
    first: Network = field(default_factory=Network)
    second: Network = field(default_factory=lambda: Network(computes_in="float16"))


def test_settings_are_found_by_their_type() -> None:
    assert compute_dtypes(Pair()) == {"float32", "float16"}
    assert compute_dtypes(Network(state_dtype="bfloat16")) == {"float32"}


@pytest.mark.parametrize("name", TINY)
def test_precision_reaches_every_network(name: str) -> None:
    config = replace(TINY[name](), compute=ComputeConfig(precision="bfloat16"))
    assert compute_dtypes(config.objective) == {"float32"}
    assert compute_dtypes(settle_precision(config, bfloat16=False).objective) == {"bfloat16"}
    auto = replace(config, compute=ComputeConfig(precision="auto"))
    assert compute_dtypes(settle_precision(auto, bfloat16=True).objective) == {"bfloat16"}
    settled = settle_precision(auto, bfloat16=False)
    assert settled.compute.precision == "float32"
    assert settled.objective == config.objective
