from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from models.safe_files.atomic import (
    NotOurs,
    atomic_directory,
    atomic_file,
    atomic_path,
    check_replaceable,
    check_replaceable_file,
    made_by_this_process,
    new_file,
    remove_directory,
    remove_left_overs,
    remove_ours,
    temporary_path,
)


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_appear_when_complete_with_the_umasks_mode(tmp_path: Path, umask: int) -> None:
    with atomic_file(tmp_path / "a") as file:
        file.write(b"one")
        assert not (tmp_path / "a").exists()
    with atomic_path(tmp_path / "b") as path:
        path.unlink()  # as libraries do that write to a private file of their own and rename it
        path.touch(0o600)
    with atomic_directory(tmp_path / "c", lambda _: False) as directory:
        (directory / "private").touch(0o600)
        (directory / "inner").mkdir()
        (directory / "inner/private").touch(0o600)
    assert names(tmp_path) == ["a", "b", "c"]
    files = [tmp_path / name for name in ("a", "b", "c/private", "c/inner/private")]
    assert {mode(path) for path in files} == {0o666 & ~umask}
    assert mode(tmp_path / "c") == 0o777 & ~umask


def fail(opened: AbstractContextManager[Any], write: Callable[[Any], object]) -> None:
    with opened as target:
        write(target)
        raise RuntimeError("failed")


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/ours").write_text("old")
    writers = [
        (atomic_file(tmp_path / "old"), lambda file: file.write(b"half")),
        (atomic_path(tmp_path / "old"), lambda path: path.write_text("half")),
        (atomic_directory(tmp_path / "dir", lambda _: True), lambda path: make(path, "half")),
    ]
    for opened, write in writers:
        with pytest.raises(RuntimeError, match="failed"):
            fail(opened, write)
    assert names(tmp_path) == ["dir", "old"]
    assert (tmp_path / "old").read_text() == (tmp_path / "dir/ours").read_text() == "old"


def test_writers_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    """Threads stand for hosts: they, too, have the same process number."""

    def write(letter: str) -> None:
        for _ in range(20):
            with atomic_file(tmp_path / "file") as file:
                file.write(letter.encode() * 1000)
                time.sleep(0)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["file"]
    assert len(set((tmp_path / "file").read_text())) == 1


def has_only_ours(path: Path) -> bool:
    return names(path) == ["ours"]


def replace(path: Path) -> None:
    with atomic_directory(path, has_only_ours, "what a test writes") as directory:
        (directory / "ours").write_text("new")


def make(path: Path, *files: str) -> Path:
    for name in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("old")
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_only_directories_of_ours_are_replaced(tmp_path: Path) -> None:
    for number, files in enumerate([(), ("ours",)]):
        replace(make(tmp_path / str(number), *files))
        assert (tmp_path / str(number) / "ours").read_text() == "new"
    for files in [("thesis.tex",), ("ours", "thesis.tex"), ("a/ours",), (".hidden",)]:
        path = make(tmp_path / "_".join(files).replace("/", "-") / "dir", *files)
        with pytest.raises(NotOurs, match=r"holds other things than what a test writes .* left as"):
            replace(path)
        assert all((path / name).read_text() == "old" for name in files)
        assert names(path.parent) == ["dir"], "nothing half-written is left"
    file = make(tmp_path, "file") / "file"
    with pytest.raises(NotOurs, match="is no directory"):
        replace(file)
    assert file.read_text() == "old"


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    for number, files in enumerate([None, (), ("ours",)]):
        target, link = tmp_path / f"disk{number}", tmp_path / f"link{number}"
        if files is not None:
            make(target, *files)
        link.symlink_to(target)
        replace(link)
        assert link.is_symlink()
        assert (target / "ours").read_text() == "new"
    thesis = make(tmp_path / "thesis", "thesis.tex")
    (tmp_path / "link").symlink_to(thesis)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = names(tmp_path)
    for name in ("link", "loop"):
        with pytest.raises(NotOurs):
            replace(tmp_path / name)
    assert names(tmp_path) == before
    assert names(thesis) == ["thesis.tex"]


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    opened = atomic_directory(tmp_path / "out", has_only_ours)
    opened.__enter__()
    make(tmp_path / "out", "thesis.tex")
    with pytest.raises(NotOurs):
        opened.__exit__(None, None, None)
    assert names(tmp_path) == ["out"]
    assert check_replaceable(tmp_path / "new", has_only_ours) == tmp_path / "new"


def test_left_overs_are_ours_and_old(tmp_path: Path) -> None:
    ours = [temporary_path(tmp_path / "a"), tmp_path / ".a.4711.tmp"]
    others = [tmp_path / name for name in (".a.tmp", ".a.notes.tmp", "a.0123456789abcdef.tmp")]
    others += [temporary_path(tmp_path / "b"), tmp_path / ".aa.1.tmp"]
    for path in [*ours[1:], *others]:
        path.touch()
    make(ours[0], "weights")
    remove_left_overs(tmp_path / "a", older_than=3600)
    assert all(path.exists() for path in ours)
    os.utime(ours[0], (1, 1))
    remove_left_overs(tmp_path / "a", older_than=3600)
    assert [path.exists() for path in ours] == [False, True]
    remove_left_overs(tmp_path / "a")
    assert not ours[1].exists()
    assert all(path.exists() for path in others)


OURS = re.compile(r"notes\.txt|shards/[0-9]{3}\.tar")


def test_directories_of_ours_are_removed_others_are_not(tmp_path: Path) -> None:
    ours = make(tmp_path / "ours", "notes.txt", ".notes.txt.0123456789abcdef.tmp", "shards/001.tar")
    remove_directory(ours, OURS, "a set")
    others = [
        make(tmp_path / "a", "notes.txt", "thesis.tex"),
        make(tmp_path / "b", "shards/001.tar", "shards/1.tar"),
        make(tmp_path / "c", "notes.txt/x"),
        make(tmp_path / "d", "notes.txt", ".notes.txt.mine.tmp"),
    ]
    (tmp_path / "e").symlink_to(make(tmp_path / "elsewhere", "notes.txt"))
    (make(tmp_path / "f", "shards/001.tar") / "notes.txt").symlink_to(others[0] / "thesis.tex")
    before = all_below(tmp_path)
    for path in [*others, tmp_path / "e", tmp_path / "f"]:
        with pytest.raises(NotOurs, match="holds other things than a set"):
            remove_directory(path, OURS, "a set")
    assert all_below(tmp_path) == before
    assert not ours.exists()


def test_only_files_of_ours_are_removed(tmp_path: Path) -> None:
    mixed = make(tmp_path / "mixed", "notes.txt", "shards/001.tar", "shards/mine.tar", "drafts/x")
    (mixed / "empty").mkdir()
    assert remove_ours(mixed, OURS) == ["drafts/x", "empty", "shards/mine.tar"]
    assert all_below(mixed) == ["drafts", "drafts/x", "empty", "shards", "shards/mine.tar"]
    (tmp_path / "link").symlink_to(make(tmp_path / "far", "notes.txt", "shards/001.tar"))
    assert remove_ours(tmp_path / "link", OURS) == []
    assert remove_ours(tmp_path / "nothing", OURS) == []
    assert names(tmp_path) == ["mixed"]


def all_below(path: Path) -> list[str]:
    return sorted(entry.relative_to(path).as_posix() for entry in path.rglob("*"))


def test_new_files_replace_nothing(tmp_path: Path) -> None:
    def write(path: Path, text: str) -> None:
        with new_file(path) as temporary:
            temporary.write_text(text)

    path = tmp_path / "file"
    write(path, "a")
    write(path, "a")
    with pytest.raises(NotOurs, match="exists, holds something else and is left as it is"):
        write(path, "b")
    (tmp_path / "directory").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "target")
    with pytest.raises(NotOurs, match="is no file"):
        write(tmp_path / "directory", "a")
    write(tmp_path / "dangling", "c")
    assert (tmp_path / "target").read_text() == "c"
    assert path.read_text() == "a"
    assert names(tmp_path) == ["dangling", "directory", "file", "target"]


def test_only_files_of_our_kind_are_replaceable(tmp_path: Path) -> None:
    for name, content in (("ours", b"ours"), ("empty", b""), ("other", b"thesis")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link").symlink_to("ours")
    for name, target in (("ours", "ours"), ("empty", "empty"), ("new", "new"), ("link", "ours")):
        found = check_replaceable_file(tmp_path / name, b"ours".__eq__, "one of ours")
        assert found == tmp_path / target
    for name in ("other", "."):
        with pytest.raises(NotOurs):
            check_replaceable_file(tmp_path / name, b"ours".__eq__, "one of ours")


def test_only_what_was_not_there_before_counts_as_made(tmp_path: Path) -> None:
    before = made_by_this_process()
    for _ in range(3):
        with atomic_file(tmp_path / "file") as file:
            file.write(b"x")
        with atomic_path(tmp_path / "path") as path:
            path.write_bytes(b"x")
        with new_file(tmp_path / "new") as path:
            path.write_bytes(b"x")
        with atomic_directory(tmp_path / "directory", lambda path: True) as directory:
            (directory / "file").write_bytes(b"x")
    assert made_by_this_process() == before + 4
