"""Jobs run in this process here; what they set in it is taken back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from unittest import mock

import pytest


@pytest.fixture(autouse=True, scope="module")
def _restored() -> Iterator[None]:
    """Restore the environment and the handlers of signals after each module."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    with mock.patch.dict(os.environ):
        yield
    for number, handler in kept.items():
        signal.signal(number, handler)
