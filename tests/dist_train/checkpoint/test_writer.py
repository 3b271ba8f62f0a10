"""Writing checkpoints: failures are tried again, and nothing but ours is replaced or removed."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from dist_train.checkpoint import writer as writing
from dist_train.checkpoint.format import (
    MARKER,
    CheckpointError,
    CheckpointReader,
    StorageError,
    TrainState,
    committed,
    find_newest_complete,
)
from dist_train.checkpoint.writer import CheckpointWriter
from dist_train.config import CheckpointConfig
from dist_train.engine.shards import ParameterShard
from dist_train.runtime.world import World, init_world
from tests.ranks import run_ranks

ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.EACCES]


def state_of(writer: CheckpointWriter, images: int) -> tuple[TrainState, Any]:
    """Return a state whose weights are the images seen, each rank's share of them."""
    rank, size = writer._world.rank, writer._world.size
    part = torch.full((4,), float(images))[rank::size]
    shard = ParameterShard("w", rank * len(part), part, {})
    return TrainState(images, images // 5, {"net": images // 5}), {"net": [shard]}


def save(writer: CheckpointWriter, images: int) -> None:
    writer.begin(*state_of(writer, images))
    writer.finish()


def names(run_dir: Path) -> list[int]:
    return [int(path.name) for path in committed(run_dir)]


def entries(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


class Failing:
    """A function of `os` that fails on this rank as long as `error` is set."""

    def __init__(self, name: str, error: int | None) -> None:
        self.error, self._original = error, getattr(os, name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        return self._original(*arguments, **keywords)


@pytest.mark.parametrize("function", ["write", "fsync", "replace", "rename", "mkdir", "open"])
@pytest.mark.parametrize("error", ERRORS)
def test_a_failed_write_leaves_the_last_one_and_is_tried_again(
    tmp_path: Path, function: str, error: int, caplog: pytest.LogCaptureFixture
) -> None:
    writer = CheckpointWriter(tmp_path, ALONE, CheckpointConfig(keep_last=1))
    save(writer, 10)
    failing = Failing(function, error)
    with mock.patch(f"os.{function}", failing):
        save(writer, 20)
        if names(tmp_path) != [20]:  # not every function is called on every way
            assert writer.pausing
            assert (writer.saved, writer.pending, writer.due) == (10, False, False)
            assert names(tmp_path) == [10]
            said = caplog.records[-1].getMessage()
            assert re.search(r"at 20 images .*failure 1 of 5.* again after 30 s", said)
            assert os.strerror(error) in said
    save(writer, 25)  # the newest state, not that of 20
    assert (writer.saved, names(tmp_path), writer.pausing) == (25, [25], False)
    assert entries(tmp_path) == [f"{25:012d}"]


def test_pauses_grow_until_the_run_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = CheckpointWriter(tmp_path, ALONE, CheckpointConfig(max_failures=3))
    save(writer, 5)
    with mock.patch("os.fsync", Failing("fsync", errno.ENOSPC)):
        for images in (10, 15):
            save(writer, images)
        writer.begin(*state_of(writer, 20))
        with pytest.raises(StorageError, match=r"3 times in a row: .*No space.* is kept: make ro"):
            writer.settle()
    pauses = [re.findall(r"after (\d+) s", record.getMessage()) for record in caplog.records]
    assert pauses == [["30"], ["60"], ["120"]]
    assert StorageError.exit_code == 74
    assert names(tmp_path) == [5]


def test_a_write_is_due_again_when_the_pause_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "FIRST_PAUSE", 0.0)
    writer = CheckpointWriter(tmp_path, ALONE, CheckpointConfig())
    assert not writer.due
    with mock.patch("os.fsync", Failing("fsync", errno.EIO)):
        save(writer, 5)
    assert writer.due
    assert writer.pausing
    save(writer, 10)
    assert not writer.due


def test_the_last_state_is_written_within_a_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, waited = Failing("fsync", errno.ESTALE), list[float]()

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        failing.error = None if len(waited) == 3 else failing.error

    monkeypatch.setattr(writing.time, "sleep", sleep)
    writer = CheckpointWriter(tmp_path, ALONE, CheckpointConfig())
    with mock.patch("os.fsync", failing):
        writer.save(*state_of(writer, 5))
        assert (names(tmp_path), waited) == ([5], [0.0, 1.0, 2.0])
        writer.save(*state_of(writer, 5))
        assert len(waited) == 3, "it is there already"
        failing.error = errno.ESTALE
        with pytest.raises(StorageError, match=r"in 5 attempts: rank 0: .*Stale"):
            writer.save(*state_of(writer, 10))
    assert names(tmp_path) == [5]


def test_what_is_no_trouble_of_storage_ends_at_once(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, ALONE, CheckpointConfig())
    shard = ParameterShard("w", 0, None, {})  # type: ignore[arg-type]
    writer.begin(TrainState(5, 1, {"net": 1}), {"net": [shard]})
    writer.wait_for_copy()
    with pytest.raises(CheckpointError, match=r"rank 0 failed to save: AttributeError"):
        writer.finish()


def test_a_directory_that_cannot_be_written_is_rejected_at_the_start(tmp_path: Path) -> None:
    for error in (errno.EROFS, errno.EACCES):
        with (
            mock.patch("pathlib.Path.touch", Failing("open", error)),
            pytest.raises(CheckpointError, match=r"rank 0 cannot write .*checkpoints: "),
        ):
            CheckpointWriter(tmp_path, ALONE, CheckpointConfig())
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/checkpoints cannot be made: Not a directory"):
        CheckpointWriter(tmp_path / "file", ALONE, CheckpointConfig())
    with mock.patch("pathlib.Path.touch", Failing("open", errno.ENOSPC)):
        CheckpointWriter(tmp_path, ALONE, CheckpointConfig())  # it may pass


def _check_ranks(run_dir: Path, function: str, bad_rank: int) -> None:
    world = init_world()
    writer = CheckpointWriter(run_dir, world, CheckpointConfig(keep_last=1))
    save(writer, 10)
    failing = Failing(function, errno.ENOSPC if world.rank == bad_rank else None)
    with mock.patch(f"os.{function}", failing):
        save(writer, 20)
    assert (writer.saved, writer.pausing, names(run_dir)) == (10, True, [10])
    world.barrier()
    save(writer, 25)
    assert (writer.saved, writer.pausing) == (25, False)
    world.barrier()
    assert entries(run_dir) == [f"{25:012d}"]
    path, problems = find_newest_complete(run_dir, world)
    assert path is not None
    assert not problems
    whole = torch.empty(4)
    CheckpointReader(path).read("net/weight/w", 0, whole)
    assert whole.tolist() == [25.0] * 4
    world.barrier()


@pytest.mark.distributed
def test_a_failure_of_one_rank_is_one_of_all(tmp_path: Path) -> None:
    for number, (function, rank) in enumerate([("write", 0), ("write", 1), ("replace", 0)]):
        run_ranks(2, _check_ranks, tmp_path / str(number), function, rank)


def _check_two_directories(root: Path) -> None:
    world = init_world()
    (root / str(world.rank) / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"rank 1 sees another .* than rank 0: put the run"):
        CheckpointWriter(root / str(world.rank), world, CheckpointConfig())
    world.barrier()


@pytest.mark.distributed
def test_a_directory_that_nodes_do_not_share_is_rejected_at_the_start(tmp_path: Path) -> None:
    run_ranks(2, _check_two_directories, tmp_path)


def test_a_listing_that_is_out_of_date_changes_nothing(tmp_path: Path) -> None:
    """As NFS may show it: rank 0 does not find the others' files by listing."""
    writer = CheckpointWriter(tmp_path, ALONE, CheckpointConfig())
    with (
        mock.patch("pathlib.Path.glob", return_value=iter(())),
        mock.patch("pathlib.Path.iterdir", return_value=iter(())),
    ):
        save(writer, 10)
    assert names(tmp_path) == [10]


FOREIGN: dict[str, Callable[[Path], object]] = {
    "file": lambda path: (path / "notes.txt").touch(),
    "hidden": lambda path: (path / ".notes").touch(),
    "directory": lambda path: (path / "thesis").mkdir(),
    "link": lambda path: (path / "rank_00001.safetensors").symlink_to(path / MARKER),
    "like ours": lambda path: (path / "rank_00001.safetensors.bak").touch(),
}


@pytest.mark.parametrize("add", FOREIGN.values(), ids=FOREIGN.keys())
def test_checkpoints_with_foreign_files_are_left_alone_and_that_is_said_once(
    tmp_path: Path, add: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    writer = CheckpointWriter(tmp_path, ALONE, CheckpointConfig(keep_last=1))
    save(writer, 10)
    add(tmp_path / "checkpoints" / f"{10:012d}")
    for images in (15, 20):
        save(writer, images)
    assert names(tmp_path) == [10, 20]
    said = [r.getMessage() for r in caplog.records]
    assert said == [f"{tmp_path}/checkpoints/{10:012d} is not removed: it holds other things"
                    " than a checkpoint"]  # fmt: skip
    marker = tmp_path / "checkpoints" / f"{10:012d}" / MARKER
    before = marker.stat().st_ino
    save(writer, 10)  # nor replaced
    assert "holds other things than a checkpoint" in caplog.records[-1].getMessage()
    assert marker.stat().st_ino == before


def test_foreign_files_in_the_place_of_the_last_checkpoint_are_no_trouble_that_passes(
    tmp_path: Path,
) -> None:
    """Exit code 2: a job that ran again would meet them again."""
    writer = CheckpointWriter(tmp_path, ALONE, CheckpointConfig())
    foreign = tmp_path / "checkpoints" / f"{10:012d}" / "thesis.tex"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    save(writer, 10)  # training continues
    rejected = pytest.raises(
        CheckpointError, match=r"other things than a checkpoint \('thesis.tex'"
    )
    with rejected as end:
        writer.save(*state_of(writer, 10))
    assert not isinstance(end.value, StorageError)
    assert foreign.read_text() == "mine"
    writer.save(*state_of(writer, 20))
    assert names(tmp_path) == [20]


def test_left_overs_are_removed_only_if_they_are_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = [f".{10:012d}.tmp", f".{10:012d}.{'a' * 16}.tmp"]
    theirs = [".mine.tmp", f".{10:012d}.b.tmp", f".{20:012d}.tmp", f"{30:012d}", "old"]
    for name in (*ours, *theirs):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    for name in ("rank_00000.safetensors", "rank_00000.json", f".{MARKER}.{'b' * 16}.tmp"):
        for directory in ours:
            (tmp_path / "checkpoints" / directory / name).touch()
    for directory in theirs:
        (tmp_path / "checkpoints" / directory / "thesis.tex").touch()
    CheckpointWriter(tmp_path, ALONE, CheckpointConfig())
    assert entries(tmp_path) == sorted(theirs)
    assert all((tmp_path / "checkpoints" / name / "thesis.tex").exists() for name in theirs)
    assert [f".{20:012d}.tmp is not removed" in r.getMessage() for r in caplog.records] == [True]


def test_damaged_newer_checkpoints_do_not_cost_the_new_one(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, ALONE, CheckpointConfig(keep_last=1))
    save(writer, 100)
    os.truncate(tmp_path / "checkpoints" / f"{100:012d}" / "rank_00000.safetensors", 3)
    for images in (60, 65, 100):
        save(writer, images)
        path, _ = find_newest_complete(tmp_path, ALONE)
        assert path is not None
        assert int(path.name) == images
    assert names(tmp_path) == [100]


def test_files_have_the_mode_of_the_umask_and_are_flushed(tmp_path: Path) -> None:
    synced = list[str]()
    original = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.split(".")[0])
        original(descriptor)

    with mock.patch("os.fsync", fsync):
        save(CheckpointWriter(tmp_path, ALONE, CheckpointConfig()), 5)
    assert {"rank_00000", "", "checkpoints"} <= set(synced)  # the marker's name begins with a dot
    umask = os.umask(0)
    os.umask(umask)
    for file in (tmp_path / "checkpoints" / f"{5:012d}").iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask
