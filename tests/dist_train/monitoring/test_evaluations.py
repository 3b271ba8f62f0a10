"""A run sends the results of its evaluations to its loggers while it trains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.tiny import BATCH, tiny_edm


class LinesLogger:
    """A logger that writes its lines to a file."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        del config
        self._path = run_dir / "lines.jsonl"

    def write(self, line: Mapping[str, float]) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps(dict(line)) + "\n")

    def show_grid(self, images_seen: int, grid: Path) -> None:
        """An evaluation ends when the snapshot has been seen."""
        path = grid.parents[1] / "evaluation" / f"{images_seen:012d}" / "quick.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"metrics": {"fid": {"values": {"distance": 1.0}}}}))

    def close(self) -> None:
        pass


def _trained(run_dir: Path) -> None:
    from dist_train.build import build_trainer
    from dist_train.config_groups import LOGGERS
    from dist_train.runtime.run_dir import settle_config
    from dist_train.runtime.world import init_world

    LOGGERS.register("lines", LinesLogger)
    config = tiny_edm()
    config = replace(
        config,
        total_images=4 * BATCH,
        logging=replace(config.logging, loggers=("lines",), grid_seeds=1),
        checkpoint=replace(config.checkpoint, snapshot_every_images=2 * BATCH),
    )
    settle_config(run_dir, config)
    build_trainer(config, run_dir, init_world()).fit()


@pytest.mark.distributed
def test_results_are_sent_with_the_next_snapshot_and_at_the_end(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_ranks(1, _trained, run_dir)
    lines = [json.loads(line) for line in (run_dir / "lines.jsonl").read_text().splitlines()]
    sent = [line["images_seen"] for line in lines if "quick/fid.distance" in line]
    assert sent == [0, 2 * BATCH, 4 * BATCH]
    trained = [n for n, line in enumerate(lines) if line["images_seen"] == 4 * BATCH]
    assert lines.index({"images_seen": 0, "quick/fid.distance": 1.0}) < trained[0]
    assert not (run_dir / "loggers.lock").exists()
