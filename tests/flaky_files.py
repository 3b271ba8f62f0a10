"""Files that cannot be opened for a moment, as on a network file system that stumbles."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.safe_files import transient


def make_flaky(
    monkeypatch: pytest.MonkeyPatch,
    matches: Callable[[Path], bool],
    times: int,
    number: int = errno.EIO,
) -> Counter[Path]:
    """Let the first `times` attempts to open each matching file fail; returns how many did so."""
    monkeypatch.setattr(transient, "DELAYS", (0.0, 0.0, 0.0))
    failed: Counter[Path] = Counter()
    open_file = io.open

    def flaky(file: Any, *arguments: Any, **options: Any) -> Any:
        path = Path(os.fsdecode(file)) if isinstance(file, (str, bytes, os.PathLike)) else None
        if path is not None and matches(path) and failed[path] < times:
            failed[path] += 1
            raise OSError(number, os.strerror(number), str(path))
        return open_file(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", flaky)
    monkeypatch.setattr(io, "open", flaky)
    return failed
