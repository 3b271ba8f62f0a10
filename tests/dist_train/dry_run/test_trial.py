"""`train RECIPE --dry-run --steps N`: real steps beside the plan, and nothing left behind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dist_train.__main__ import main
from dist_train.dry_run.trial import calibrated
from tests.paths import ROOT


def _rows(printed: str) -> dict[str, list[float]]:
    """Return the ratios of the table by name."""
    return {
        line.split()[0]: [float(line.split()[-1])]
        for line in printed.splitlines()
        if re.match(r"(step|images/s|memory) ", line)
    }


@pytest.mark.parametrize("recipe", ["rdm_debug_edm16", "wavediff_debug"])
def test_steps_are_measured_beside_the_plan_and_nothing_is_left(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [recipe, "--run-dir", str(tmp_path / "run"), "--dry-run", "--steps", "2"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"{recipe}: 2 steps of 8 images on this processor, ZeRO-0" in printed
    rows = _rows(printed)
    assert rows.keys() == {"step", "images/s", "memory"}
    assert rows["memory"][0] == pytest.approx(1, abs=0.1)
    assert not [*tmp_path.iterdir()]


@pytest.mark.distributed
def test_ranks_measure_together(tmp_path: Path) -> None:
    command = ["rdm_debug_edm16", "--run-dir", str(tmp_path / "run"), "--ranks", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "dist_train", *command, "--dry-run", "--steps", "1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 steps of 8 images on 2 x this processor, ZeRO-1" in done.stdout
    assert done.stdout.count("planned as bound by") == 1, "rank 0 speaks for all"
    assert _rows(done.stdout)["memory"][0] == pytest.approx(1, abs=0.1)
    assert not [*tmp_path.iterdir()]


def test_a_run_that_is_there_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["rdm_debug_edm16", "--run-dir", str(tmp_path / "run"), "total_images=16"]
    assert main(run) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([*run, "--dry-run", "--steps", "1"]) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert main([*run, "seed=77", "--dry-run", "--steps", "1"]) == 2
    assert "seed" in capsys.readouterr().err


def test_options_that_make_no_sense_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["rdm_debug_edm16", "--run-dir", str(tmp_path / "run")]
    assert main([*run, "--steps", "3"]) == 2
    assert "--steps=3 is for --dry-run; set total_images" in capsys.readouterr().err
    assert main([*run, "--dry-run", "--steps", "0"]) == 2
    assert "--steps=0 must be positive" in capsys.readouterr().err


def test_an_unknown_device_is_planned_for_by_what_it_reaches() -> None:
    device = calibrated(torch.device("cpu"))
    assert 0 < device.float32_flops < 1e15
    assert 0 < device.bandwidth < 1e14
