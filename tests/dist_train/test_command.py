"""The command: bad input is rejected in one line; a killed run resumes to the same weights."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from dist_train.__main__ import main
from dist_train.checkpoint.format import CheckpointReader, committed
from dist_train.recipes import RECIPES
from models.config_io import from_json, override, to_json
from tests.dist_train.test_trainer import whole_tensors
from tests.ranks import run_ranks
from tests.tiny import last_of_each

TINY = [
    "quickstart_edm16",
    "data.backend=synthetic",
    "objective.unet.model_channels=8",
    "objective.unet.label_dim=4",
    "logging.wandb_project=null",
    "global_batch_size=8",
    "logging.every_images=8",
    "checkpoint.every_images=80",
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_recipe"], "there is no recipe 'no_such_recipe'; known are .*quickstart_edm16"),
        (["quickstart_edm16", "data.path"], "'data.path' is not an override; write key=value"),
        (["quickstart_edm16", "lr=1"], "unknown setting 'lr'"),
        (["quickstart_edm16", "seed=fast"], "seed='fast' is not of type int"),
        (
            ["quickstart_edm16", "sharding.zero_stage=4"],
            "sharding.zero_stage=4 is not one of 0, 1, 2, 3",
        ),
        (["quickstart_edm16", "optim.denoiser.lr=-1"], "lr=-1.0 must be positive"),
        (["quickstart_relay64", "objective.process.upscale=5"], "not a multiple of"),
        (["quickstart_edm16", "divergence.action=pray"], "not one of 'stop', 'skip', 'roll_back'"),
        (["quickstart_edm16", "--deepspeed", "/nowhere.json"], "No such file"),
        (["status", "/nowhere"], "/nowhere is not a run directory"),
        (["quickstart_edm16"], "--run-dir is missing"),
        (
            ["plan", "wavediff_debug", "--gpus-per-node=1", "checkpoint.keep_best=x"],
            "keep_best='x' is no metric of this run; they are discriminator/loss, .*generator/loss",
        ),
        (["plan", "quickstart_edm16", "global_batch_size=7"], "global_batch_size=7 is not a mult"),
        (["plan", "quickstart_edm16", "data.resolution=32"], "resolution=32, but the objective"),
    ],
)
def test_bad_settings_are_rejected_before_anything_starts(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["global_batch_size=10", "micro_batch_size=4"], "set it to 8 or 12"),
        (["data.resolution=32"], "data.resolution=32, but the objective is for 16x16"),
        (["data.backend=dali", "data.path=/nowhere/at/all"], "/nowhere/at/all"),
        (["objective.unet.label_dim=2"], "label_dim=2, but .* classes"),
        (['optim={"x": {"lr": 1}}'], "optim has settings for"),
        (
            ['sharding.deepspeed={"fp16": {"enabled": true}}'],
            "deepspeed.fp16 contradicts the recipe",
        ),
        (
            ["checkpoint.keep_best=denoiser/los"],
            "keep_best='denoiser/los' is no metric of this run; .*did you mean denoiser/loss",
        ),
        (["sharding.offload=parameters"], "offload=parameters needs sharding.zero_stage=3, not 1"),
    ],
)
def test_settings_that_do_not_fit_the_data_or_the_ranks(
    overrides: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*last_of_each(*TINY, *overrides), "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert not committed(tmp_path / "run")


def test_a_run_directory_of_other_settings_is_rejected_and_left_alone(tmp_path: Path) -> None:
    from dist_train.runtime.run_dir import settle_config
    from models.config_io import ConfigError

    config = RECIPES["quickstart_edm16"]()
    settle_config(tmp_path, config)
    before = (tmp_path / "config.json").read_bytes()
    settle_config(tmp_path, config)
    with pytest.raises(ConfigError, match=r"seed: 0 -> 1\); use another run directory"):
        settle_config(tmp_path, override(config, ["seed=1"]), allow_changes=True)
    with pytest.raises(ConfigError, match=r"every_images: 3200 -> 16\); add --allow-changes"):
        settle_config(tmp_path, override(config, ["logging.every_images=16"]))
    assert (tmp_path / "config.json").read_bytes() == before
    settle_config(tmp_path, override(config, ["logging.every_images=16"]), allow_changes=True)
    assert json.loads((tmp_path / "config.json").read_text())["logging"]["every_images"] == 16


def test_settings_that_were_rejected_do_not_bind_the_directory(tmp_path: Path) -> None:
    from dist_train.runtime.run_dir import settle_config
    from models.config_io import ConfigError

    config, device = RECIPES["quickstart_edm16"](), torch.device("cpu")
    settle_config(tmp_path, override(config, ["data.resolution=32"]), device=device)
    assert settle_config(tmp_path, config, device=device).data.resolution == 16
    (tmp_path / "snapshots" / f"{0:012d}").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"resolution: 16 -> 32\); use another run directory"):
        settle_config(tmp_path, override(config, ["data.resolution=32"]), device=device)


def test_a_run_directory_has_one_writer_at_a_time(tmp_path: Path) -> None:
    from dist_train.runtime.run_dir import RunDirBusyError, RunLock

    lock = RunLock(tmp_path)
    with pytest.raises(RunDirBusyError, match=f"in use by pid {os.getpid()} on"):
        RunLock(tmp_path, patience=0.0)
    lock.release()
    RunLock(tmp_path, patience=0.0).release()


def test_every_recipe_survives_json(capsys: pytest.CaptureFixture[str]) -> None:
    for name, recipe in RECIPES.items():
        config = recipe()
        assert config.recipe == name
        assert from_json(type(config), json.loads(json.dumps(to_json(config)))) == config
    assert main(["list"]) == 0
    assert all(name in capsys.readouterr().out for name in ["quickstart_relay64"])
    assert main(["quickstart_relay64", "seed=7", "--print-config"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 7


def _start(run_dir: Path, *overrides: str, total: int = 400) -> subprocess.Popen[str]:
    return _run(*TINY, f"total_images={total}", *overrides, "--run-dir", str(run_dir))


def _run(*arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [sys.executable, "-m", "dist_train", *arguments, "--ranks", "2"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )


def _wait_for_images(run_dir: Path, images: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = run_dir / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        if lines and json.loads(lines[-1])["images_seen"] >= images:
            return
        time.sleep(0.05)
    raise AssertionError(f"{run_dir} did not reach {images} images")


def _rank_pids(launcher: int) -> list[int]:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text()
    return [int(pid) for pid in children.split()]


@pytest.mark.parametrize("as_file", [True, False])
def test_a_setting_of_deepspeed_given_twice_is_rejected(
    as_file: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, file = (
        '{"wall_clock_breakdown": true, "wall_clock_breakdown": false}',
        tmp_path / "d.json",
    )
    file.write_text(text)
    given = [f"--deepspeed={file}"] if as_file else [f"sharding.deepspeed={text}"]
    assert main(["rdm_debug_edm16", *given, "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert f"{file if as_file else 'sharding.deepspeed'}: the key 'wall_clock_breakdown'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sharding.nodes=2"], "sharding.nodes is the size of a Slurm job; here --ranks is that"),
        (["--profile-steps=-1"], "--profile-steps=-1 must not be negative"),
        (
            ["--deepspeed=file.json", 'sharding.deepspeed={"wall_clock_breakdown": true}'],
            "--deepspeed would replace sharding.deepspeed",
        ),
    ],
)
def test_options_and_settings_that_contradict_each_other(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rdm_debug_edm16", *arguments, "--run-dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "ranks", "message"),
    [
        ([], "2", ""),
        ([], "3", "set it to 6 or 12"),
        (["data.resolution=32"], "1", "the objective is for 16x16"),
        (["sharding.offload=parameters"], "2", "needs sharding.zero_stage=3"),
    ],
)
def test_a_dry_run_of_training_checks_all_and_writes_nothing(
    overrides: list[str], ranks: str, message: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = [*TINY, *overrides, "--dry-run", "--ranks", ranks]
    code = main([*command, "--run-dir", str(tmp_path / "run")])
    printed = capsys.readouterr()
    assert code == (2 if message else 0), printed.err
    assert message in printed.err
    assert ("is valid" in printed.out) is not bool(message)
    assert not (tmp_path / "run").exists()


def test_one_process_trains_several_runs_one_after_the_other(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("first", "second")]
    settings = [*TINY, "total_images=16", "checkpoint.snapshot_every_images=16"]
    assert [main([*settings, "--run-dir", str(run)]) for run in runs] == [0, 0]
    weights = [next(run.glob("snapshots/*16/*.safetensors")).read_bytes() for run in runs]
    assert weights[0] == weights[1]


def test_a_run_in_the_place_of_a_recipe_brings_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for run, seed in ((first, 1), (second, 2)):
        settings = ["total_images=16", "checkpoint.every_images=16", f"seed={seed}"]
        assert main([*last_of_each(*TINY, *settings), "--run-dir", str(run)]) == 0
    config, (last,) = (first / "config.json").read_bytes(), committed(first)
    weights = whole_tensors(first)
    shutil.rmtree(last)
    assert main([str(first)]) == 0
    assert (first / "config.json").read_bytes() == config
    for name, values in whole_tensors(first).items():
        assert torch.equal(weights[name], values), name

    assert main([str(first), "logging.every_images=16"]) == 2, "as with its recipe"
    assert "every_images: 8 -> 16); add --allow-changes" in capsys.readouterr().err
    assert main([str(first), "logging.every_images=16", "--allow-changes"]) == 0
    capsys.readouterr()
    assert main(["diff", str(first), str(second)]) == 0
    assert capsys.readouterr().out == "seed: 1 -> 2\nlogging.every_images: 16 -> 8\n"
    assert main(["diff", str(first), str(first)]) == 0
    assert capsys.readouterr().out == "the same settings\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--run-dir", "other"], "is a run, which has its settings: leave --run-dir out"),
        (["{run}", "--config", "file.json"], "which has its settings: leave --config out"),
        (["{run}/no"], "no is not a run directory: there is no such directory"),
        (["{run}/.."], r"\.\. is not a run directory: it has no config.json; runs in it are run"),
        (["diff", "{run}", "{run}/no"], "no is not a run directory"),
        ([], "name a recipe"),
        (["run"], "there is no recipe 'run'"),
    ],
)
def test_what_is_no_run_or_says_more_than_a_run_is_rejected(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from dist_train.runtime.run_dir import settle_config

    settle_config(tmp_path / "run", RECIPES["quickstart_edm16"]())
    monkeypatch.chdir(tmp_path / "run")
    assert main([text.format(run=tmp_path / "run") for text in arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1


@pytest.mark.distributed
@pytest.mark.slow
def test_a_run_that_is_killed_or_stopped_resumes_to_the_same_weights(tmp_path: Path) -> None:
    undisturbed = _start(tmp_path / "undisturbed")

    run_dir = tmp_path / "disturbed"
    launcher = _start(run_dir)  # one rank is killed: the other ends too, and says who was lost
    _wait_for_images(run_dir, 104)
    os.kill(_rank_pids(launcher.pid)[1], signal.SIGKILL)
    errors = launcher.communicate(timeout=90)[1]
    assert "rank 1 was lost (SIGKILL)" in errors
    assert "rank 0 lost contact with rank 1 (last seen in " in errors  # known without launcher
    assert launcher.returncode == 128 + signal.SIGKILL

    launcher = _start(run_dir)  # the launcher is killed: its ranks save and end by themselves
    _wait_for_images(run_dir, 200)
    launcher.kill()
    launcher.communicate(timeout=90)  # they hold its pipes until they are gone

    for images, request in ((264, signal.SIGUSR2), (328, signal.SIGTERM)):
        launcher = _start(run_dir)  # is asked to stop: saves, and says so
        _wait_for_images(run_dir, images)
        launcher.send_signal(request)
        launcher.communicate(timeout=90)
        assert launcher.returncode == 75
        assert CheckpointReader(committed(run_dir)[-1]).state.images_seen >= images

    for process in (_run(str(run_dir)), undisturbed):  # its settings need not be typed again
        process.communicate(timeout=180)
        assert process.returncode == 0
    ours, theirs = whole_tensors(run_dir), whole_tensors(tmp_path / "undisturbed")
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert torch.equal(ours[name], values), name
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["images_seen"] for line in lines] == list(range(8, 401, 8))


def _stop_in_step(run_dir: Path, step: int, code: int) -> None:
    """Train for three steps, with SIGTERM in the middle of one; check the exit code."""
    from dist_train.trainer import Trainer

    healthy = Trainer._train_step

    def asked_to_stop(trainer: Trainer, examples: Any) -> None:
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        healthy(trainer, examples)

    with mock.patch.object(Trainer, "_train_step", asked_to_stop):
        assert main([*TINY, "total_images=24", "--run-dir", str(run_dir)]) == code


@pytest.mark.distributed
@pytest.mark.parametrize(("step", "code"), [(1, 75), (2, 0)])
def test_a_run_that_is_asked_to_stop_in_its_last_step_is_finished(
    step: int, code: int, tmp_path: Path
) -> None:
    run_ranks(1, _stop_in_step, tmp_path, step, code)
    assert (tmp_path / "snapshots" / f"{24:012d}" / "snapshot.json").exists() == (code == 0)
