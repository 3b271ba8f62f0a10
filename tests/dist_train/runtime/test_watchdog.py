"""The watchdog: slow storage is no hang, on the rank that waits for it and on those behind it."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist
from torch.distributed import HashStore

from dist_train.runtime import watchdog
from dist_train.runtime.watchdog import STORAGE, Watchdog, publish_pulse, waits_for_storage
from dist_train.runtime.world import NO_TIMEOUT, World, init_world
from tests.ranks import run_ranks

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "PULSE_SECONDS", 0.02)


def _watched(
    run_dir: Path, world: World, timeout: float = 0.0
) -> tuple[Watchdog, threading.Event, list[str]]:
    """Return a watchdog for which everything but storage hangs at once, and what it gave up."""
    dog = Watchdog(run_dir, world, timeout, storage_timeout=1e6)
    given_up, places = threading.Event(), list[str]()

    def give_up(where: str, seconds: float) -> None:
        del seconds
        places.append(where)
        given_up.set()

    dog._give_up = give_up  # type: ignore[method-assign]
    return dog, given_up, places


def test_slow_storage_is_no_hang(tmp_path: Path) -> None:
    dog, given_up, places = _watched(tmp_path, World(0, 0, 1, CPU))
    dog._last = (dog._last[0], "the data" + STORAGE)
    for thread in dog._threads:
        thread.start()
    with dog.storage("the data"):
        assert not given_up.wait(0.3)
    assert given_up.wait(30)
    assert set(places) == {"what follows the data"}
    dog.__exit__(None, None, None)


def test_ranks_wait_for_one_that_lives_and_waits_for_storage() -> None:
    store = HashStore()
    ours, theirs = (World(rank, rank, 2, CPU, store) for rank in range(2))
    ended = threading.Event()

    def live(where: str) -> threading.Thread:
        def publish() -> None:
            pulse = 0
            while not ended.wait(0.002):
                pulse += 1
                publish_pulse(theirs, pulse, where)

        thread = threading.Thread(target=publish)
        thread.start()
        return thread

    publish_pulse(ours, 1, "step 3")
    assert not waits_for_storage(ours)  # nothing is known of the other
    thread = live("the data" + STORAGE)
    try:
        while not store.check(["pulse/1"]):
            pass
        assert any(waits_for_storage(ours) for _ in range(100))  # a busy machine answers late
        assert not waits_for_storage(theirs)  # the other one computes
    finally:
        ended.set()
        thread.join()
    assert not waits_for_storage(ours), "its pulse stands still: it is lost"


def test_a_suspended_process_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm stops all processes of a job that it suspends; the clock of the machine runs on."""
    suspended, step = 0.0, 0.0

    def clock() -> float:
        nonlocal suspended
        suspended += step
        return time.monotonic() + suspended

    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=clock, sleep=time.sleep))
    dog, given_up, places = _watched(tmp_path, World(0, 0, 1, CPU), timeout=600.0)
    with dog:
        dog.beat("step 3")
        for _ in range(3):
            suspended += 1e5
            assert not given_up.wait(0.1)
        step = 10.0  # it runs, and hangs
        assert given_up.wait(30)
    assert set(places) == {"step 3"}


def _lift(root: Path) -> None:
    world = init_world(timedelta(seconds=100))
    groups = [dist.group.WORLD, dist.new_group()]
    with Watchdog(root, world, 60, 60):
        world.barrier()
    for group in groups:
        assert group._get_backend(CPU).options._timeout == NO_TIMEOUT


@pytest.mark.distributed
def test_collectives_of_watched_ranks_have_no_clock_of_their_own(tmp_path: Path) -> None:
    """Theirs would run on while Slurm suspends the job, and end it when it continues."""
    run_ranks(2, _lift, tmp_path)
