"""Committed loss curves: 50 steps of each objective on one CPU rank, reproduced.

Regenerate after a deliberate change with `python -m tests.dist_train.test_curves`, and say in the
commit why the curves changed. On the processor and torch that recorded them they must be equal to
the last bit. Elsewhere kernels sum in another order; weights perturbed by 1e-7, about one rounding,
change these curves by up to the recorded `sensitivity`, of which a hundred times is allowed. A
wrong constant, a lost factor or another random draw changes them by per cents.
"""

from __future__ import annotations

import json
import platform
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.config import CheckpointConfig, ShardingConfig
from tests.paths import RECORDS
from tests.ranks import run_ranks
from tests.tiny import BATCH, TINY

STEPS = 50


def _record_path(name: str) -> Path:
    return RECORDS / f"curve_{name}.json"


def _machine() -> dict[str, str]:
    """Return what rounding depends on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return {
        "torch": torch.__version__,
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "processor": model or platform.processor(),
    }


def _train(root: Path, names: list[str], perturbation: float) -> None:
    from dist_train.build import build_trainer
    from dist_train.runtime.world import init_world

    for name in names:
        config = replace(
            TINY[name](),
            total_images=STEPS * BATCH,
            checkpoint=CheckpointConfig(
                every_images=STEPS * BATCH, snapshot_every_images=STEPS * BATCH
            ),
            sharding=ShardingConfig(zero_stage=0),
        )
        (root / name).mkdir(parents=True)
        trainer = build_trainer(config, root / name, init_world())
        for engine in trainer.engines.values():
            for parameter in engine.network.parameters():
                parameter.data *= 1 + perturbation * torch.randn_like(parameter)
        trainer.fit()


def _curves(run_dir: Path) -> dict[str, list[float | None]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    names = [key for key in lines[0] if key.endswith("/loss") or key.endswith("/r1")]
    return {name: [line[name] for line in lines] for name in names}


def _deviation(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Return the largest relative difference of two sets of curves."""
    assert ours.keys() == theirs.keys()
    worst = 0.0
    for name, curve in theirs.items():
        assert [v is None for v in ours[name]] == [v is None for v in curve]
        pairs = zip(ours[name], curve, strict=True)
        worst = max([worst, *(abs(a - b) / abs(b) for a, b in pairs if b is not None)])
    return worst


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("curves")
    run_ranks(1, _train, root, list(TINY), 0.0)
    return root


@pytest.mark.distributed
@pytest.mark.parametrize("name", TINY)
def test_the_committed_curve_is_reproduced(trained: Path, name: str) -> None:
    record = json.loads(_record_path(name).read_text())
    deviation = _deviation(_curves(trained / name), record["curves"])
    allowed = 0.0 if record["machine"] == _machine() else 100 * record["sensitivity"]
    assert deviation <= allowed, f"the loss curve of {name} changed by {deviation:.2e}"


def _regenerate() -> None:
    RECORDS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        run_ranks(1, _train, root / "exact", list(TINY), 0.0)
        run_ranks(1, _train, root / "perturbed", list(TINY), 1e-7)
        for name in TINY:
            curves = _curves(root / "exact" / name)
            document = {
                "machine": _machine(),
                "sensitivity": _deviation(_curves(root / "perturbed" / name), curves),
                "curves": curves,
            }
            _record_path(name).write_text(json.dumps(document, indent=1) + "\n")
            print(name, document["sensitivity"])


if __name__ == "__main__":
    _regenerate()
