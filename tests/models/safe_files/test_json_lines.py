"""Logs of JSON lines: every good line counts, every other is counted."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from models.safe_files.documents import DocumentError
from models.safe_files.json_lines import read_lines, write_lines
from tests.flaky_files import make_flaky

DAMAGE: dict[str, bytes] = {
    "a bad byte": b'{"n": 2, "name": "\xff"}\n',
    "half a line": b'{"n": 2, "na\n',
    "another value": b"[1, 2]\n",
    "null": b"null\n",
    "zeros": b"\0" * 4096 + b"\n",
    "deep": b'{"n": ' + b"[" * 100_000 + b"\n",
    "a long number": b'{"n": ' + b"1" * 100_000 + b"}\n",
    "no newline": b'{"n": 2}{"n": 3}\n',
    "what the caller rejects": b'{"m": 2}\n',
}


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_lines_are_left_out_and_counted(
    damage: str, place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [b'{"n": 0}\n', b'{"n": 1}\n', b'{"n": 9}\n']
    number = {"first": 0, "middle": 1, "last": 3}[place]
    lines.insert(number, DAMAGE[damage])
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(lines))
    assert read_lines(path, lambda entry: "n" in entry) == [{"n": 0}, {"n": 1}, {"n": 9}]
    assert len(caplog.records) == 1
    expected = f"{path}: 1 of 4 lines are damaged or torn and left out, the first is line"
    assert caplog.messages[0] == f"{expected} {number + 1}"


def test_a_torn_last_line_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n":')
    assert read_lines(path) == [{"n": 0}]
    assert "1 of 2 lines" in caplog.text


def test_what_is_written_is_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [{"n": 1, "loss": 0.1 + 0.2, "name": "é", "nothing": None}, {"n": 2}]
    path = tmp_path / "log.jsonl"
    assert read_lines(path) == []
    write_lines(path, entries)
    assert read_lines(path) == entries
    path.write_bytes(path.read_bytes() + b"\n\n")  # blank lines say nothing
    assert read_lines(path) == entries
    assert not caplog.records


def test_an_error_of_the_moment_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.safe_files.transient.DELAYS", (0.0,))
    path = tmp_path / "log.jsonl"
    write_lines(path, [{"n": 1}])
    failed = make_flaky(monkeypatch, lambda name: name == path, 1, errno.ESTALE)
    with caplog.at_level(logging.WARNING):
        assert read_lines(path) == [{"n": 1}]
    assert failed.total() == 1
    assert "trying again" in caplog.text


def test_zeros_without_an_end_are_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"n": 1}\n' + bytes(3 << 20) + b'\n{"n": 2}\n')
    assert read_lines(path) == [{"n": 1}, {"n": 2}]
    assert "1 of 3 lines are damaged" in caplog.text
    os.truncate(path, 3 << 30)
    with pytest.raises(DocumentError, match=r"log.jsonl has more than 512 MiB"):
        read_lines(path)
