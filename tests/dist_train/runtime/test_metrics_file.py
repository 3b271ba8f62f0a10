"""metrics.jsonl: a damaged line costs itself only, for every reader and at a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dist_train.__main__ import main
from dist_train.config import LoggingConfig
from dist_train.monitoring.metrics_log import MetricsLog
from dist_train.runtime.metrics_file import METRICS, cut_metrics, read_metrics
from models.config_io import write_config
from slurm.jobs.throughput import known_throughput
from slurm.monitor.commands import run_history
from slurm.monitor.status import run_status
from tests.tiny import tiny_edm

DAMAGE: dict[str, bytes] = {
    "a bad byte": b'{"images_seen": 16, "step": 2, "denoiser/loss": 1.\xff}\n',
    "half a line": b'{"images_seen": 16, "st\n',
    "two lines in one": b'{"images_seen": 16, "step": 2}{"images_seen": 24, "step": 3}\n',
    "no clock": b'{"denoiser/loss": 0.5}\n',
    "a clock of text": b'{"images_seen": "16", "step": 2}\n',
    "a clock before the start": b'{"images_seen": -16, "step": 2}\n',
    "a clock of 400 digits": b'{"images_seen": ' + b"9" * 400 + b', "step": 2}\n',
    "a loss of text": b'{"images_seen": 16, "step": 2, "denoiser/loss": "low"}\n',
    "a list of losses": b'{"images_seen": 16, "step": 2, "denoiser/loss": [1]}\n',
    "a list": b"[16, 2]\n",
    "null": b"null\n",
}


def _line(images: int) -> bytes:
    values = {"denoiser/loss": 0.5, "speed/images_per_second": 2.0, "data/replaced_samples": 0.0}
    return json.dumps({"images_seen": images, "step": images // 8, **values}).encode() + b"\n"


def _damaged_run(root: Path, damage: str) -> Path:
    """Make a run with five lines, of which the third and the last are damaged."""
    run_dir = root / "run"
    run_dir.mkdir()
    write_config(tiny_edm(), run_dir / "config.json")
    bad = DAMAGE[damage]
    lines = [_line(8), _line(12), bad, _line(24), bad.rstrip(b"\n")]
    (run_dir / METRICS).write_bytes(b"".join(lines))
    return run_dir


@pytest.mark.parametrize("damage", DAMAGE)
def test_all_readers_leave_out_what_is_damaged(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = _damaged_run(tmp_path, damage)
    assert [line["images_seen"] for line in read_metrics(run_dir)] == [8, 12, 24]
    assert main(["status", str(run_dir)]) == 0
    assert "24/48 images (50%)" in capsys.readouterr().out
    assert run_status(run_dir, {})["images_seen"] == 24
    assert run_history(run_dir)["productive_seconds"] == 12.0
    throughput = known_throughput(run_dir, "tiny_edm", 1)
    assert throughput is not None
    assert throughput.images_per_second == 2.0


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_resumed_run_keeps_the_good_lines_and_adds_to_them(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = _damaged_run(tmp_path, damage)
    log = MetricsLog(run_dir, 48, LoggingConfig(), {})
    log.open(24)
    log.write(32, 4, {"denoiser/loss": 0.25, "speed/images_per_second": 2.0})
    log.close()
    assert len(caplog.records) == 1
    assert "2 of 5 lines are damaged or torn" in caplog.text
    lines = (run_dir / METRICS).read_bytes().splitlines(keepends=True)
    assert lines[:3] == [_line(8), _line(12), _line(24)]
    assert json.loads(lines[3])["images_seen"] == 32
    assert len(lines) == 4


def test_lines_after_the_checkpoint_are_cut(tmp_path: Path) -> None:
    cut_metrics(tmp_path, 8)
    assert not (tmp_path / METRICS).exists()
    (tmp_path / METRICS).write_bytes(_line(8) + _line(16))
    cut_metrics(tmp_path, 8)
    assert (tmp_path / METRICS).read_bytes() == _line(8)
