"""Digests that identify what results and features were made of."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def short_hash(document: Any) -> str:
    """Return 12 hexadecimal digits that identify a JSON document."""
    text = json.dumps(document, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
