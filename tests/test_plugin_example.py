"""examples/plugin, installed as users do: each kind of thing that it adds, used by a command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import relaywave
from data_pipelines.packed.manifest import read_manifest
from tests.paths import ROOT
from tests.plugins import plugins_apart

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
OFFLINE = ("--no-deps", "--no-index", "--no-build-isolation")
QUIET = ("logging.grid_seeds=0",)


def install(directory: Path) -> Path:
    """Install the example in a directory for PYTHONPATH, from a copy: builds leave files."""
    source = shutil.copytree(
        ROOT / "examples" / "plugin",
        directory / "source",
        ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"),
    )
    target = directory / "installed"
    subprocess.run([*PIP, *OFFLINE, "--target", str(target), str(source)], check=True)
    return target


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where it is installed: in the search path of this process, too."""
    target = install(tmp_path_factory.mktemp("plugin"))
    with plugins_apart():
        sys.path.append(str(target))
        yield target


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arrays") / "images.npy"
    images = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    np.save(path, images)
    return path


def command(*arguments: object) -> int:
    """Run a command in this process; returns its exit code."""
    return relaywave.main([*map(str, arguments)])


def outside(installed: Path, *arguments: object) -> None:
    """Run a command in a process of its own."""
    path = os.pathsep.join([str(installed), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    words = [sys.executable, "-m", "relaywave", *map(str, arguments)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def run(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its recipe, objective and logger, trained by two ranks."""
    run_dir = tmp_path_factory.mktemp("runs") / "flow"
    loggers = 'logging.loggers=["lines"]'
    outside(installed, "train", "flow_debug", "--run-dir", run_dir, "--ranks", 2, *QUIET, loggers)
    return run_dir


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "snapshots" / f"{64:012d}" / "weights.safetensors")


@pytest.mark.distributed
def test_its_objective_is_exact_over_ranks_and_interruptions(run: Path, tmp_path: Path) -> None:
    assert (run / "losses.txt").read_text().count("flow_debug") == 4
    train = ("train", "flow_debug", *QUIET, "--run-dir")
    assert command(*train, tmp_path / "one") == 0
    assert command(*train, tmp_path / "cut", "total_images=32") == 0
    assert command(*train, tmp_path / "cut", "--allow-changes") == 0
    two, one, cut = weights(run), weights(tmp_path / "one"), weights(tmp_path / "cut")
    for name in two:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5)
        assert torch.equal(cut[name], one[name]), f"{name} differs after an interruption"


@pytest.mark.distributed
def test_its_protocol_metric_and_detector_evaluate_it(
    run: Path, arrays: Path, tmp_path: Path
) -> None:
    """Against a set that its source packed."""
    packed, reference, result = tmp_path / "set", tmp_path / "ref.npz", tmp_path / "result.json"
    assert command("data", "pack", "npy", arrays, packed, "--resolution", 16) == 0
    protocol = ("--protocol", "flow_debug")
    assert command("eval", "reference", packed, reference, *protocol) == 0
    evaluate = ("eval", "run", run, "sampling.steps=2", *protocol, "--reference", reference)
    assert command(*evaluate, "--out", result) == 0
    document = json.loads(result.read_text())
    assert {"fd_thumbnail_pixels", "shift_thumbnail_pixels"} <= document["metrics"].keys()
    assert document["metrics"]["shift_thumbnail_pixels"]["values"]["distance"] > 0


def test_its_backend_delivers_to_training(
    installed: Path, arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("data.backend=npy", f"data.path={arrays}", "objective.unet.label_dim=0", *QUIET)
    train = ("train", "flow_debug", "--run-dir", tmp_path / "run", *settings)
    smaller = ("data.resolution=8", "objective.unet.resolution=8")
    assert command(*train, *smaller, "--dry-run") == 2
    assert "has images of 16x16; set data.resolution to that" in capsys.readouterr().err
    assert command(*train, "total_images=16") == 0
    assert json.loads((tmp_path / "run" / "data.json").read_text())["num_images"] == 80


def test_a_source_of_a_file_is_read_by_packing_processes(tmp_path: Path) -> None:
    """They are started by pickles, and the file's module is in no search path."""
    example = (ROOT / "examples/plugin/relaywave_flow/arrays.py").read_text()
    (tmp_path / "source.py").write_text(example.replace('"npy"', '"array"'))
    images = np.random.default_rng(0).integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    pack = ("data", "pack", "array", tmp_path / "images.npy", tmp_path / "set", "--resolution=16")
    with plugins_apart():
        assert command(*pack, "--workers=2", "--import", tmp_path / "source.py") == 0
    assert read_manifest(tmp_path / "set").num_images == 300


def test_its_workflow_is_listed_with_ours(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("slurm", "workflow", "list") == 0
    assert "flow_debug                 Flow matching on a .npy file" in capsys.readouterr().out


@pytest.mark.distributed
def test_jobs_have_a_copy_of_it(
    installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job's Python lacks the package: its PYTHONPATH is that of the copy of the code."""
    run_dir = tmp_path / "run"
    size = ("--tasks-per-node=1", "--gpus-per-node=0", "--time=10", "--cluster=local")
    submit = ("slurm", "train", "flow_debug", "--run-dir", run_dir, *size, "total_images=64")
    assert command(*submit, 'logging.loggers=["line"]') == 2
    assert "'line' is not one of 'lines'; did you mean lines?" in capsys.readouterr().err
    assert not run_dir.exists()
    outside(installed, *submit, *QUIET)
    assert len([*run_dir.glob("slurm/code/*/relaywave_plugins/*/code/relaywave_flow/flow.py")]) == 1
    snapshot, deadline = run_dir / "snapshots" / f"{64:012d}" / "snapshot.json", time.time() + 300
    while not snapshot.exists():
        logs = [path.read_text() for path in run_dir.glob("slurm/jobs/*.err")]
        assert "rror" not in "".join(logs), logs
        assert time.time() < deadline, logs
        time.sleep(0.2)
