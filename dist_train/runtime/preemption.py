"""Signals that ask a run to stop.

In the loop they set a flag, and the loop saves at the next step boundary. Before it, there is
nothing to save, and the process ends at once. This module imports nothing heavy: it takes signals
while PyTorch is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

from models.command_line import EXIT_PREEMPTED, say

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask to stop: of schedulers, of a terminal (Ctrl-C) and of users."""
LAUNCHED = "RELAYWAVE_LAUNCHED"
"""Environment variable that tells a rank that launch.py started it."""
PR_SET_PDEATHSIG = 1


class StopRequest:
    """Context manager that turns SIGNALS into `requested`.

    Signals may arrive more than once (a terminal's Ctrl-C reaches launcher and ranks, and the
    launcher passes it on), so every one of them is taken as the same request.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            over = handler is _leave  # the run's end is settled: nothing changes it any more
            signal.signal(number, signal.SIG_IGN if over else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def say_nothing_is_lost(name: str) -> None:
    """Say that a signal of this name ended the process before there was anything to save."""
    if LAUNCHED not in os.environ and os.environ.get("RANK", "0") == "0":
        say(f"stopped by {name} before training began: nothing is lost, run the same command again")


@contextlib.contextmanager
def exiting_when_asked(last: Callable[[str], None] = say_nothing_is_lost) -> Iterator[None]:
    """Have SIGNALS end this process with EXIT_PREEMPTED until a StopRequest takes over.

    A thread sees to that: the main thread may be importing, or waiting for other ranks in a call
    during which Python runs no handlers. In another than the main thread this does nothing.

    Args:
        last: Called with the signal's name before the process ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    previous = {number: signal.signal(number, _leave) for number in SIGNALS}
    previous_fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _last_acts.append(last)
    threading.Thread(target=_watch, args=(reading,), name="start-up", daemon=True).start()
    stop_with_launcher()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous_fd)
        os.close(writing)
        _last_acts.pop()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(reading: int) -> None:
    """Leave as soon as a signal arrives that no StopRequest takes; until the pipe is closed."""
    while number := os.read(reading, 1):
        if signal.getsignal(number[0]) is _leave:
            _leave(number[0], None)
    os.close(reading)


_leaving = threading.Lock()
_last_acts: list[Callable[[str], None]] = []


def _leave(number: int, frame: FrameType | None) -> None:
    if not _leaving.acquire(blocking=False):
        return  # the other thread is at it
    try:
        _last_acts[-1](signal.Signals(number).name)
    finally:
        os._exit(EXIT_PREEMPTED)


def stop_with_launcher() -> None:
    """Have Linux send SIGTERM to this rank when its launcher is killed, rather than orphan it."""
    launched = LAUNCHED in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if sys.platform == "linux" and launched:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
