"""Signals that ask a run to stop: a flag is set, and the loop saves at the next step boundary."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType, TracebackType

from dist_train.runtime.launch import LAUNCHED

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1


class StopRequest:
    """Context manager that turns SIGTERM, SIGINT (Ctrl-C) and SIGUSR2 into `requested`.

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
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def stop_with_launcher() -> None:
    """Have Linux send SIGTERM to this rank when its launcher is killed, rather than orphan it."""
    launched = LAUNCHED in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if sys.platform == "linux" and launched:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
