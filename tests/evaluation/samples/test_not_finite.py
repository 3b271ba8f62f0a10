"""Models of finite weights whose samples are not: rejected, however they are drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation import __main__ as cli
from models.snapshot import read_snapshot, write_snapshot
from tests.evaluation.test_commands import write_images
from tests.evaluation.test_ranks import write_generator
from tests.fuzz.subjects.models import make_snapshot
from tests.paths import ROOT

SEEDS = ["--seeds", "0-7", "--batch-size", "2"]


def overflow(model: Path) -> None:
    """Give a model finite weights so large that its activations are not finite."""
    old = read_snapshot(model)
    weights = {name: w.sign() * 1e38 + w for name, w in old.load_weights().items()}
    assert all(bool(w.isfinite().all()) for w in weights.values())
    write_snapshot(
        model, weights, objective=old.objective, network=old.network, images_seen=0, ema="none",
        provenance={},
    )  # fmt: skip


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("command", "dtype"), [("sample", "float32"), ("sample", "bfloat16"), ("run", "bfloat16")]
)
def test_both_ranks_stop_with_one_line(tmp_path: Path, command: str, dtype: str) -> None:
    overflow(write_generator(tmp_path / "model", 0))
    write_images(tmp_path / "images", 4, size=16)
    arguments = [command, "model", f"generator.compute_dtype={dtype}", *SEEDS]
    arguments += ["--out", "out"] if command == "sample" else ["--out", "out.json"]
    arguments += ["--reference", "images", "--keep-images", "out"] if command == "run" else []
    paths = {"PYTHONPATH": str(ROOT), "RELAYWAVE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "evaluation", *arguments, "--ranks", "2"],
        cwd=tmp_path, env={**os.environ, **paths}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "model draws samples that are not finite (seeds " in done.stderr
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["complete"] is False
    assert not list((tmp_path / "out").rglob("*.png"))
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("override", [[], ['sampling.enhance=[["brightness",1.06]]']])
def test_enhancement_does_not_hide_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: list[str]
) -> None:
    """The 8-bit operations of the official scripts are a part of the sampler."""
    make_snapshot(tmp_path / "model", 0)
    overflow(tmp_path / "model")
    command = ["sample", str(tmp_path / "model"), *override, "--out", str(tmp_path / "out")]
    assert cli.main([*command, *SEEDS]) == 2
    assert "draws samples that are not finite (seeds 0 to 1)" in capsys.readouterr().err
