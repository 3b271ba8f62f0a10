"""Digests that identify what results and features were made of."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from models.safe_files.transient import file_sha256, retried


def short_hash(document: Any) -> str:
    """Return 12 hexadecimal digits that identify a JSON document."""
    text = json.dumps(document, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, which is read once while it stays as it is.

    Raises:
        OSError: It cannot be read.
    """
    facts = retried(lambda: os.stat(path), f"reading {path}")
    return _digest(
        path.absolute(),
        (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns),
    )


@functools.lru_cache(maxsize=100)
def _digest(path: Path, facts: tuple[int, ...]) -> str:
    """Return the SHA-256 of a file of which these facts are known, as `stat` gives them."""
    del facts
    return file_sha256(path)
