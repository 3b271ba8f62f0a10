"""config.json and format.json are checked before use; a rejected run leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from dist_train.__main__ import main
from dist_train.runtime.run_dir import RunDirBusyError, RunLock, read_run_config, settle_config
from dist_train.runtime.run_files import read_settings, read_summary, write_settings
from models.config_io import ConfigError, override, write_config
from models.safe_files import documents
from models.safe_files.atomic import atomic_file
from models.safe_files.locks import FileLock
from slurm.__main__ import main as slurm
from slurm.jobs.jobs import TrainJob
from slurm.monitor.status import format_status, run_status
from tests.tiny import tiny_edm

CONFIGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unknown key": lambda c: c | {"lr": 1},
    "unknown key below": lambda c: c | {"data": c["data"] | {"pth": "x"}},
    "wrong type": lambda c: c | {"seed": "0"},
    "a list": lambda c: [c],
    "null": lambda c: None,
    "no length": lambda c: {k: v for k, v in c.items() if k != "total_images"},
    "NaN": lambda c: c | {"optim": {"denoiser": {"type": "AdamConfig", "lr": float("nan")}}},
    "a huge number": lambda c: c | {"total_images": 10**400},
    "a negative number": lambda c: c | {"total_images": -1},
    "deep": lambda c: c | {"sharding": c["sharding"] | {"deepspeed": _nested(300)}},
    "many": lambda c: c | {"sharding": c["sharding"] | {"deepspeed": {"x": [0] * 200_000}}},
}


def _nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"x": value}
    return value


TEXTS: dict[str, bytes] = {
    "empty": b"",
    "half": b'{"type": "RunConfig", "recipe": "ti',
    "binary": bytes(range(256)),
    "infinite": b'{"recipe": "x", "total_images": 1e999}',
    "very deep": b'{"x":' * 100_000,
}


def _damaged(root: Path, damage: str) -> Path:
    """Make a run whose config.json is damaged; format.json is as old versions left it."""
    settle_config(root / "run", tiny_edm())
    path = root / "run" / "config.json"
    if damage in TEXTS:
        path.write_bytes(TEXTS[damage])
    else:
        path.write_text(json.dumps(CONFIGS[damage](json.loads(path.read_text()))))
    (root / "run" / "format.json").write_text('{"format_version": 2, "began_as": 2}\n')
    return root / "run"


@pytest.mark.parametrize("damage", [*CONFIGS, *TEXTS])
def test_a_damaged_configuration_is_one_line(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = _damaged(tmp_path, damage)
    before = {path: path.read_bytes() for path in run_dir.iterdir()}
    for arguments in (
        ["status", str(run_dir)],
        ["export", str(run_dir), str(tmp_path / "out")],
        ["ema", str(run_dir), "--relative-width", "0.1"],
        ["quickstart_edm16", "data.backend=synthetic", "--run-dir", str(run_dir)],
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{run_dir}/config.json" in error
        assert "restore it" in error
        assert len(error) < 1000
    assert {path: path.read_bytes() for path in run_dir.iterdir()} == before
    settle_config(tmp_path / "other", tiny_edm())
    assert slurm(["status", str(tmp_path)]) == 0  # the other run is listed all the same
    assert "0/48 images" in capsys.readouterr().out


def _digit(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


CHANGED = {
    "seed": _digit('"seed": 0', '"seed": 1'),
    "length": _digit('"total_images": 48', '"total_images": 88'),
    "rate": _digit('"lr": 0.001', '"lr": 0.003'),
    "another run's": lambda text: json.dumps(
        json.loads(text) | {"recipe": "other", "total_images": 64}
    ),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_changed_configuration_is_found(change: str, tmp_path: Path) -> None:
    """Jobs read all their settings from it: one digit would train something else."""
    settle_config(tmp_path, tiny_edm())
    path = tmp_path / "config.json"
    path.write_text(CHANGED[change](path.read_text()))
    message = r"config\.json was changed after the run wrote it"
    with pytest.raises(ConfigError, match=message):
        read_run_config(tmp_path)
    with pytest.raises(ConfigError, match=message):
        TrainJob(tmp_path).trained()
    with pytest.raises(ConfigError, match=message):
        settle_config(tmp_path, tiny_edm(), allow_changes=True)
    assert message.replace("\\", "") in format_status(run_status(tmp_path, {}))


def test_an_old_run_whose_sampler_is_rejected_now_can_be_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settle_config(tmp_path, tiny_edm())
    document = read_settings(tmp_path)
    document["objective"]["sampling"]["rho"] = 0.01
    write_settings(tmp_path, document, began_as=2)
    assert read_run_config(tmp_path) == tiny_edm()
    assert "rho=0.01" in caplog.text
    assert "the sampler's defaults are used" in caplog.text
    assert settle_config(tmp_path, tiny_edm()) == tiny_edm()
    document["global_batch_size"] = -1  # that is no matter of the sampler
    write_settings(tmp_path, document, began_as=2)
    with pytest.raises(ConfigError, match=r"config\.json does not parse.*; restore it"):
        read_run_config(tmp_path)


def test_spaces_do_not_matter_and_old_runs_have_no_checksum(tmp_path: Path) -> None:
    settle_config(tmp_path, tiny_edm())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert read_run_config(tmp_path) == tiny_edm()
    write_config(override(tiny_edm(), ["seed=3"]), path)
    (tmp_path / "format.json").unlink()
    assert read_run_config(tmp_path).seed == 3
    assert read_summary(tmp_path).total_images == 48


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_kill_while_settings_are_written_leaves_a_run(written: int, tmp_path: Path) -> None:
    settle_config(tmp_path, tiny_edm())
    done = 0

    def killed(path: Path) -> Any:
        nonlocal done
        if done == written:
            raise KeyboardInterrupt
        done += 1
        return atomic_file(path)

    longer = override(tiny_edm(), ["total_images=96"])
    with (
        mock.patch.object(documents, "atomic_file", killed),
        pytest.raises(KeyboardInterrupt),
    ):
        settle_config(tmp_path, longer, allow_changes=True)
    assert read_run_config(tmp_path).total_images == (96 if written == 2 else 48)
    settle_config(tmp_path, longer, allow_changes=True)
    assert read_run_config(tmp_path) == longer


FORMATS = {
    "list": "[]",
    "null": "null",
    "half": '{"format_version": 2, "beg',
    "binary": "\udcff\udcfe",
    "no version": "{}",
    "a version of text": '{"format_version": "2"}',
    "a broken version": '{"format_version": 1.5}',
    "true": '{"format_version": true}',
    "a wrong type": '{"format_version": 2, "began_as": [2]}',
    "a newer version": '{"format_version": 3}',
}


@pytest.mark.parametrize("damage", FORMATS)
def test_a_damaged_format_is_one_line_that_says_what_to_do(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settle_config(tmp_path, tiny_edm())
    file = tmp_path / "format.json"
    file.write_bytes(FORMATS[damage].encode(errors="surrogateescape"))
    assert main(["quickstart_edm16", "--run-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(file) in error
    assert "restore it from a backup" in error
    file.unlink()  # as it advises
    settle_config(tmp_path, tiny_edm())
    assert json.loads(file.read_text())["format_version"] == 2


def test_a_changed_digit_of_the_format_is_found(tmp_path: Path) -> None:
    settle_config(tmp_path, tiny_edm())
    file = tmp_path / "format.json"
    file.write_text(file.read_text().replace('"began_as": 2', '"began_as": 1'))
    with pytest.raises(ConfigError, match=r"format\.json was changed"):
        read_settings(tmp_path)


def test_an_empty_format_is_written_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A kill while an older version wrote it left it so."""
    settle_config(tmp_path, tiny_edm())
    (tmp_path / "format.json").write_bytes(b"")
    settle_config(tmp_path, tiny_edm())
    assert "format.json is empty; it is written again" in caplog.text
    assert json.loads((tmp_path / "format.json").read_text())["format_version"] == 2


# What a rejected run leaves.

REJECTED = {
    "ranks": ["global_batch_size=10", "micro_batch_size=4"],
    "data": ["data.backend=webdataset", "data.path=/nowhere/at/all"],
    "labels": ["objective.unet.label_dim=2"],
    "networks": ['optim={"x": {"lr": 1}}'],
    "DeepSpeed": ["sharding.offload=parameters"],
}
TRAIN = ["quickstart_edm16", "data.backend=synthetic", "logging.wandb_project=null"]


@pytest.mark.parametrize("rejected", REJECTED)
def test_a_rejected_run_leaves_nothing_behind(
    rejected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for run_dir in (tmp_path / "new" / "run", tmp_path / "empty"):
        assert main([*TRAIN, *REJECTED[rejected], "--run-dir", str(run_dir)]) == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
    submitted = tmp_path / "submitted"
    settle_config(submitted, override(tiny_edm(), []))
    before = {path: path.read_bytes() for path in submitted.iterdir()}
    assert main([*TRAIN, *REJECTED[rejected], "--run-dir", str(submitted)]) == 2
    assert {path: path.read_bytes() for path in submitted.iterdir()} == before
    capsys.readouterr()
    assert main(["status", str(tmp_path / "empty")]) == 2
    assert "it has no config.json; runs in it" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["thesis.tex", "model.safetensors", ".git", "2026"])
def test_a_directory_of_other_things_is_rejected_and_untouched(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / name).write_text("all of it")
    assert main([*TRAIN, "--run-dir", str(thesis)]) == 2
    error = capsys.readouterr().err
    assert f"{thesis} holds other things than a run ({name!a})" in error
    with pytest.raises(ConfigError, match="holds other things"):
        settle_config(thesis, tiny_edm())
    assert [path.name for path in thesis.iterdir()] == [name]
    assert main([*TRAIN, "--run-dir", str(thesis / name)]) == 2
    assert "is no directory" in capsys.readouterr().err


def test_a_run_that_lost_its_configuration_is_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / f"{8:012d}").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"has checkpoints, but no config\.json"):
        settle_config(tmp_path, tiny_edm(), device=torch.device("cpu"))


def test_a_mistyped_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from evaluation.__main__ import main as evaluation

    settle_config(tmp_path / "stage1", tiny_edm())
    for path, problem in (
        (tmp_path / "stage2", "there is no such directory"),
        (tmp_path, "it has no config.json; runs in it are stage1"),
    ):
        for run in (
            lambda path: main(["status", str(path)]),
            lambda path: main(["export", str(path), str(tmp_path / "out")]),
            lambda path: main(["ema", str(path), "--relative-width", "0.1"]),
            lambda path: slurm(["resume", str(path), "--cluster=local"]),
        ):
            assert run(path) == 2
            error = capsys.readouterr().err
            assert f"{path} is not a run directory: {problem}" in error
            assert error.count("\n") == 1
    assert evaluation(["run", str(tmp_path / "stage2"), "--reference", "r.npz"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'stage2'} does not exist" in error
    assert "--out" not in error


OWNERS = ["", "[]", "null", '{"pid": 1}', "\udcff", '{"pid": "1\\n2", "host": "h", "since": "s"}']


@pytest.mark.parametrize("content", OWNERS)
def test_a_damaged_lock_is_a_lock_all_the_same(content: str, tmp_path: Path) -> None:
    held = RunLock(tmp_path)
    (tmp_path / "lock").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RunDirBusyError, match="is in use by another process; stop it"):
        RunLock(tmp_path, patience=0.0)
    held.release()
    RunLock(tmp_path, patience=0.0).release()


def test_a_lock_that_a_rejected_run_removed_protects_nothing(tmp_path: Path) -> None:
    """Who waited for it takes the new one, not the removed one."""
    waiting = FileLock(tmp_path / "lock", stays=True)
    (tmp_path / "lock").unlink()
    first = RunLock(tmp_path)
    with pytest.raises(RunDirBusyError):
        RunLock(tmp_path, patience=0.0)
    assert not waiting.take()
    first.release()
    assert waiting.take(patience=5.0)
    with pytest.raises(RunDirBusyError):
        RunLock(tmp_path, patience=0.0)
    waiting.release()
