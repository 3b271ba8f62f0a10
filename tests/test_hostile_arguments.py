"""Every command with every kind of bad path: exit code 2, one line that names it, no output."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import relaywave
from data_pipelines.__main__ import build_parser as data_parser
from dist_train.__main__ import COMMANDS as TRAINING
from dist_train.__main__ import build_parser as training_parser
from evaluation.arguments import build_parser as evaluation_parser
from models.__main__ import build_parser as models_parser

SECONDS = 60
"""After which a command that waits for ever is ended; it takes far less on a busy machine."""

INPUTS = [
    "data pack {path} {out} --resolution 8",
    "data pack images {path} {out} --resolution 8",
    "data info {path}",
    "data check {path} --workers 1",
    "data beton {path}",
    "data preview {path} {out}.png",
    "data bench {path} --workers 1",
    "train quickstart_edm16 data.path={path} --run-dir {out}",
    "train quickstart_edm16 --deepspeed {path} --print-config",
    "train status {path}",
    "train ema {path} --relative-width 0.1",
    "train export {path} {out}",
    "eval sample {path} --out {out}",
    "eval sheet classes {path} --out {out}.png",
    "eval reference {path} {out}.npz",
    "eval run {path} --reference {path} --out {out}.json",
    "eval table {path}",
    "eval compare {path}",
    "eval export {path} {out}.npz --format edm",
    "eval import {path} {out}.npz",
    "eval convert {path} {out}.safetensors",
    "slurm status {path}",
    "slurm status {path} --json",
    "slurm cancel {path}",
    "slurm history {path}",
    "slurm logs {path}",
    "slurm resume {path}",
    "slurm reconcile {path}",
    "convert rdm-official {path} {out}",
    "convert wavediff-official {path} {out}",
    "report {path} --out {out}",
    "spectrum {path} {out}",
]


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _missing(path: Path) -> None:
    assert not path.exists()


def _garbage(path: Path) -> None:
    path.write_bytes(b"{\xff\x00" + bytes(range(256)) * 10)


def _deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def _below_a_file(path: Path) -> None:
    path.parent.touch()


PATHS: dict[str, Callable[[Path], None]] = {
    "missing": _missing,
    "fifo": _fifo,
    "fifo.png": _fifo,
    "fifo.json": _fifo,
    "loop.json": _loop,
    "empty.json": Path.touch,
    "garbage.json": _garbage,
    "garbage.npz": _garbage,
    "garbage.pkl": _garbage,
    "deep.json": _deep,
    "new\nline": _missing,
    os.fsdecode(b"name\xff"): _garbage,
    "x" * 300: lambda path: None,
    "file/below": _below_a_file,
}


@pytest.fixture(autouse=True)
def impatience() -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise AssertionError("the command waits for ever")

    previous = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def _no_answer(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Answer as Slurm's commands do where no controller is."""
    return subprocess.CompletedProcess(command, 1, "", "Unable to contact slurm controller")


@pytest.mark.parametrize("command", INPUTS)
@pytest.mark.parametrize("name", PATHS, ids=ascii)
def test_a_bad_path_is_one_line_that_names_it(
    command: str,
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / name
    PATHS[name](path)
    monkeypatch.setattr("slurm.monitor.status.have_slurm", lambda: True)
    monkeypatch.setattr("slurm.slurm_cli.subprocess.run", _no_answer)
    before = sorted(tmp_path.iterdir())
    words = [word.format(path=path, out=tmp_path / "out") for word in command.split()]
    try:
        code = relaywave.main(words)
    except SystemExit as ended:
        code = int(ended.code or 0)
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.count("\n") == 1, error
    assert ascii(name)[1:-1].partition("/")[0][:40] in error
    assert sorted(tmp_path.iterdir()) == before, "nothing is written"


def test_a_device_is_no_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert relaywave.main(["convert", "rdm-official", "/dev/zero", "out"]) == 2
    assert "/dev/zero is a FIFO, a socket or a device" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval table {path}", "slurm history {path}"])
def test_a_fifo_in_a_directory_is_not_waited_for(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("result.json", "config.json", "metrics.jsonl"):
        os.mkfifo(tmp_path / name)
    assert relaywave.main(command.format(path=tmp_path).split()) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_fifo_among_images_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert relaywave.main(["spectrum", str(tmp_path), str(tmp_path / "out")]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def _parsers() -> Iterator[tuple[list[str], argparse.ArgumentParser]]:
    """Yield the parsers of commands, with the words that call them."""
    tops = {"data": data_parser(""), "eval": evaluation_parser(), "models": models_parser("")}
    tops |= {f"train {name}": training_parser("", name) for name in ("", *TRAINING)}
    for name, parser in tops.items():
        yield name.split(), parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for word, child in action.choices.items():
                    yield [name, word], child


NUMBERS = [
    (words, option.option_strings[-1])
    for words, parser in _parsers()
    for option in parser._actions
    if option.type in (int, float) and option.option_strings
]


@pytest.mark.parametrize(("words", "option"), NUMBERS, ids=str)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "9" * 25, "1e400", "\udce9", "1e3x", ""])
def test_numbers_that_are_none(
    words: list[str], option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parsers = {tuple(key): parser for key, parser in _parsers()}
    with pytest.raises(SystemExit) as end:
        parsers[tuple(words)].parse_args([f"{option}={value}"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert option in error
    assert error.count("\n") == 1
