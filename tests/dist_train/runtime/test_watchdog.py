"""The watchdog: slow storage is no hang, on the rank that waits for it and on those behind it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

from dist_train.runtime import watchdog
from dist_train.runtime.watchdog import STORAGE, Watchdog, publish_pulse, waits_for_storage
from dist_train.runtime.world import World

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "PULSE_SECONDS", 0.02)


def _watched(run_dir: Path, world: World) -> tuple[Watchdog, threading.Event, list[str]]:
    """Return a watchdog for which everything but storage hangs at once, and what it gave up."""
    dog = Watchdog(run_dir, world, timeout=0.0, storage_timeout=1e6)
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
