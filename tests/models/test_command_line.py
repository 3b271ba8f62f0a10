"""How commands end: exit codes, and one line whatever went wrong."""

from __future__ import annotations

import argparse
import errno
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
import safetensors

from models import command_line
from models.safe_files.regular import TooLarge
from models.snapshot import SnapshotError
from tests.paths import ROOT


class CodedError(Exception):
    __module__ = "dist_train.trainer"
    exit_code = command_line.EXIT_DIVERGED


def _raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("seed=x is wrong"), 2, "seed=x is wrong"),
        (SnapshotError("no snapshot"), 2, "no snapshot"),
        (CodedError("nan"), 3, "nan"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a\nb"), 2, r"a\nb: No such file"),
        (FileNotFoundError(errno.ENOENT, "No such file", b"\xff"), 2, r"\udcff: No such file"),
        (OSError(errno.EXDEV, "Crosses", "a", None, "b"), 2, "a -> b: Crosses"),
        (OSError(errno.ENOSPC, "No space left"), 74, "OUT: No space left"),
        (OSError(errno.ESTALE, "Stale", "a"), 74, "a: Stale"),
        (OSError(errno.EFBIG, "File too large", "a"), 74, "a: File too large"),  # in writing
        (TooLarge(errno.EFBIG, "it has more than 1 MB", "a"), 2, "a: it has more than 1 MB"),
        (TimeoutError(errno.ETIMEDOUT, "Timed out", "a"), 74, "a: Timed out"),
        (OSError("no port is free"), 2, "no port is free"),
        (MemoryError(), 2, "OUT: there is not enough memory for this (an allocation failed)"),
        (RecursionError("depth"), 2, "OUT: the input is nested too deeply"),
        (EOFError(), 2, "OUT: EOFError\n"),
        (zipfile.BadZipFile("File is not a zip file"), 2, "OUT: BadZipFile: File is not a zip"),
        (tarfile.ReadError("empty"), 2, "OUT: ReadError: empty"),
        (PIL.Image.DecompressionBombError("big"), 2, "OUT: DecompressionBombError: big"),
        (safetensors.SafetensorError("header"), 2, "OUT: SafetensorError: header"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), 2, "OUT: UnicodeDecodeError: "),
        (ImportError("No module named 'submitit'", name="submitit"), 2, "relaywave[slurm]"),
        (KeyboardInterrupt(), 130, "interrupted; what is finished is kept"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_an_input_explains_is_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with command_line.about("OUT"):
            _raising(error)()

    assert command_line.run(work) == code
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert line in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("visible", [True, False])
@pytest.mark.parametrize(
    ("error", "number", "code"),
    [
        (ValueError("a cannot be read"), errno.EIO, 74),
        (SnapshotError("a cannot be read"), errno.EIO, 74),
        (zipfile.BadZipFile("a is cut short"), errno.EDQUOT, 74),
        (SnapshotError("there is no a"), errno.ENOENT, 2),
        (SnapshotError("a may not be read"), errno.EACCES, 2),
        (CodedError("nan"), errno.EIO, 3),
        (KeyError("x"), errno.EIO, 1),
    ],
)
def test_what_storage_explains_may_be_gone_later(
    error: Exception, number: int, code: int, visible: bool
) -> None:
    """Jobs that end with 74 are run again, later; those with 2 are not."""

    def work() -> None:
        try:
            raise OSError(number, os.strerror(number))
        except OSError as cause:
            raise error from cause if visible else None

    assert command_line.run(work) == code


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shape\nmismatch"), TypeError()])
def test_a_defect_keeps_its_traceback_above_the_line(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.run(_raising(error)) == 1
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert last.startswith(f"error: {type(error).__name__}: ")
    assert "defect" in last


def test_the_traceback_of_a_rejection_is_shown_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RELAYWAVE_TRACEBACK", "1")
    assert command_line.run(_raising(ValueError("x"))) == 2
    assert capsys.readouterr().err.startswith("Traceback")


def test_output_that_nobody_reads_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        assert command_line.run(lambda: print("text") or 0) == 0
    assert capsys.readouterr().err == ""


CLOSING = """
import os, sys
from models import command_line

def work():
    with open(sys.argv[1], "w") as file:
        print("text", flush=True)
        os.write(1, b"of a library")
        print("error", file=sys.stderr, flush=True)
        file.write("content")

sys.exit(command_line.run(work))
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_lead_nowhere(closed: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(CLOSING)
    command = f"{sys.executable} script.py file {closed}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "content", "no output lands in another file"
    assert done.stdout == ("" if " >&-" in f" {closed}" else "text\nof a library")
    assert done.stderr == ("" if "2>&-" in closed else "error\n")


def test_output_that_cannot_be_written_is_said() -> None:
    code = "from models import command_line as c; raise SystemExit(c.run(lambda: print('text')))"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (74, "error: stdout: No space left on device\n")


def test_a_line_has_an_end() -> None:
    line = command_line.one_line("x" * 100_000)
    assert len(line) < 2 * command_line.LONGEST
    assert " ... " in line


def test_the_documented_codes_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    table = text.partition("## Exit codes")[2].partition("\n## ")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    codes = {value for name, value in vars(command_line).items() if name.startswith("EXIT_")}
    assert documented == codes | {0}


@pytest.mark.parametrize("setting", [False, True])
def test_a_fifo_is_rejected_instead_of_read(tmp_path: Path, setting: bool) -> None:
    os.mkfifo(tmp_path / "fifo")
    named = f"data.path={tmp_path / 'fifo'}" if setting else tmp_path / "fifo"
    with pytest.raises(ValueError, match="fifo is a FIFO, a socket or a device; name a file"):
        command_line.check_files(argparse.Namespace(sources=[tmp_path, named], ranks=2))
    command_line.check_files(argparse.Namespace(source=tmp_path, missing=tmp_path / "x", n=None))


GUIDED = """
import sys
from models import command_line
from models.config_io import override
from tests.tiny import tiny_edm
objective = override(tiny_edm().objective, ["label_dropout=0", "sampling.guidance.scale=2"])
network = objective.build().build_networks()["denoiser"]
sys.exit(command_line.run(lambda: objective.build_sampler(network) and 0))
"""


def test_a_warning_is_one_line() -> None:
    command = [sys.executable, "-c", GUIDED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    lines = [line for line in done.stderr.splitlines() if "guidance scale=2" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: guidance scale=2")
    assert "config.py" not in done.stderr
