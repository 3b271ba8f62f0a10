"""Noticing that a rank hangs or is gone, and saying which one.

Every rank has a thread that publishes a pulse, and where the loop is, in the process group's store.
A loop without progress for too long dumps the stacks of all its threads to `hangs/` and ends its
process; as a hang of one rank stops all others in their next collective, each of them does so.
Storage may be slow without being dead: it has a limit of its own, and those that wait for a living
rank that waits for storage wait on. Only seconds in which the process runs count: Slurm may suspend
a job for hours.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from torch import distributed as dist

from dist_train.runtime.world import World
from models.command_line import EXIT_LOST

STORAGE = " (storage)"
"""Ends the description of a place where a rank waits for a disk."""
PULSE_SECONDS = 1.0
STORE_SECONDS = 30.0
"""How long a store that answers may take to do so, on a busy machine."""
MISSED_PULSES = 5
"""A rank whose pulse stands still for so many intervals is gone."""
LONGEST_LOOK = 30.0
"""Seconds between looks at the loop; where more have passed, the process was stopped."""


class LostRankError(RuntimeError):
    """A collective failed because another rank is gone; the last checkpoint is kept."""

    exit_code = EXIT_LOST


class Watchdog:
    """Context manager around the loop.

    Args:
        run_dir: The run directory, for `hangs/rank_00000.txt`.
        world: The process group.
        timeout: Seconds without a `beat` that count as a hang.
        storage_timeout: The same while `storage` is waited for.
    """

    def __init__(self, run_dir: Path, world: World, timeout: float, storage_timeout: float) -> None:
        self._dir = run_dir / "hangs"
        self._world = world
        self._timeout, self._storage_timeout = timeout, max(timeout, storage_timeout)
        self._ran = 0.0
        """Seconds for which this process has run."""
        self._last = (self._ran, "the start")
        self._ended, self._dumped = threading.Event(), threading.Event()
        # Two threads: the store may block, when the rank that keeps it hangs.
        self._threads = [
            threading.Thread(target=work, name="watchdog", daemon=True)
            for work in (self._publish, self._watch)
        ]

    def beat(self, where: str) -> None:
        """Tell that the loop moves on, and what it does next."""
        self._last = (self._ran, where)

    @contextlib.contextmanager
    def storage(self, where: str) -> Iterator[None]:
        """Do something that may wait for slow storage, within the limit for that."""
        self.beat(where + STORAGE)
        yield
        self.beat(f"what follows {where}")

    def __enter__(self) -> Watchdog:
        self.beat("the start")
        self._world.lift_timeouts()  # they would run on while Slurm suspends the job
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        # A thread that is still in the store when the interpreter ends would abort the process.
        for thread in self._threads:
            thread.join(STORE_SECONDS if error is None else PULSE_SECONDS)

    def _publish(self) -> None:
        pulse = 0
        publish_pulse(self._world, pulse, self._last[1])
        while not self._ended.wait(PULSE_SECONDS):
            pulse += 1
            publish_pulse(self._world, pulse, self._last[1])

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._ended.wait(PULSE_SECONDS):
            before, looked = looked, time.monotonic()
            self._ran += min(looked - before, LONGEST_LOOK)
            last = when, where = self._last
            seconds = self._storage_timeout if where.endswith(STORAGE) else self._timeout
            if self._ran - when <= seconds or waits_for_storage(self._world):
                continue
            if self._last is last:  # still, after the seconds that this took
                self._give_up(where, seconds)

    def _give_up(self, where: str, seconds: float) -> None:
        """Write all stacks and end the process: its main thread cannot."""
        rank = self._world.rank
        why = f"no progress for {seconds:g} s in {where}"
        stacks = self._dump_stacks(why)
        _say(f"rank {rank} hangs: {why}; stacks of its threads are in {stacks}")
        lost = lost_ranks(self._world)
        if lost:
            _say(f"rank {rank} waits for {_named(lost)}")
        os._exit(EXIT_LOST)

    def _dump_stacks(self, why: str) -> str:
        """Write the stacks of all threads; to stderr, if the storage is what hangs or is full."""
        file = self._dir / f"rank_{self._world.rank:05d}.txt"
        writer = threading.Thread(target=self._write_stacks, args=(file, why), daemon=True)
        writer.start()
        writer.join(MISSED_PULSES * PULSE_SECONDS)
        if self._dumped.is_set():
            return str(file)
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        return "the lines above"

    def _write_stacks(self, file: Path, why: str) -> None:
        with contextlib.suppress(OSError):
            file.parent.mkdir(exist_ok=True)
            with open(file, "w") as stacks:
                print(why, file=stacks, flush=True)
                faulthandler.dump_traceback(stacks, all_threads=True)
            self._dumped.set()


def waits_for_storage(world: World) -> bool:
    """Whether another rank lives and waits for storage. Takes seconds."""
    before = _answered(world) if world.store is not None else None
    if not before or not any(where.endswith(STORAGE) for where in before.values()):
        return False
    time.sleep(MISSED_PULSES * PULSE_SECONDS)
    after = _answered(world) or {}
    return any(
        where.endswith(STORAGE) and before.get(rank) != where
        for rank, where in after.items()
        if rank != world.rank
    )


def _say(message: str) -> None:
    with contextlib.suppress(OSError):
        print(f"dist_train: {message}", file=sys.stderr, flush=True)


def publish_pulse(world: World, pulse: int, where: str) -> None:
    """Tell the other ranks that this one lives; silent if the store is gone."""
    if world.store is not None:
        try:
            world.store.set(f"pulse/{world.rank}", f"{pulse} {where}")
        except RuntimeError:
            return


@contextlib.contextmanager
def blaming_lost_ranks(world: World) -> Iterator[None]:
    """Turn the failure of a collective into a LostRankError that names the rank that is gone.

    Raises:
        LostRankError: A collective failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_contact(error):
            raise
        lost = _named(lost_ranks(world)) or "another rank"
        raise LostRankError(
            f"rank {world.rank} lost contact with {lost}: a collective failed;"
            " the last checkpoint is kept, run the same command again"
        ) from error


def is_lost_contact(error: BaseException) -> bool:
    """Tell whether a collective failed because another rank is gone."""
    return isinstance(error, dist.DistError) or any(w in str(error) for w in ("gloo", "NCCL"))


def lost_ranks(world: World) -> dict[int, str]:
    """Return the ranks whose pulse stands still, and where they were seen last. Takes seconds."""
    before = _answered(world)
    time.sleep(MISSED_PULSES * PULSE_SECONDS)
    after = _answered(world)
    if after is None:
        return {0: "the start or later (it keeps the others' addresses, and does not answer)"}
    if before is None:
        return {}
    return {
        rank: after.get(rank, "0 its start").partition(" ")[2]
        for rank in range(world.size)
        if rank != world.rank and before.get(rank) == after.get(rank)
    }


def _named(lost: dict[int, str]) -> str:
    return ", ".join(f"rank {rank} (last seen in {where})" for rank, where in lost.items())


def _answered(world: World) -> dict[int, str] | None:
    """Return all published pulses, or None if the store does not answer in time."""
    answer: list[dict[int, str] | None] = []
    thread = threading.Thread(target=lambda: answer.append(_pulses(world)), daemon=True)
    thread.start()
    thread.join(MISSED_PULSES * PULSE_SECONDS)
    return answer[0] if answer else None


def _pulses(world: World) -> dict[int, str] | None:
    """Return all published pulses, or None if the store does not answer."""
    if world.store is None:
        return {}
    try:
        keys = {rank: f"pulse/{rank}" for rank in range(world.size)}
        present = {rank: key for rank, key in keys.items() if world.store.check([key])}
        return {rank: world.store.get(key).decode() for rank, key in present.items()}
    except RuntimeError:
        return None
