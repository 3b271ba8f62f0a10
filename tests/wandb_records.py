"""What wandb has written while offline, read from its files, which are logs as LevelDB's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEADER = 7
"""Bytes of a file before its first block, and of a record before its data: CRC, length, kind."""
BLOCK = 32768
FULL, LAST = 1, 4


def read_history(run_dir: Path) -> list[dict[str, Any]]:
    """Return all lines that were logged to the one record of a run, in order of its sessions."""
    from wandb.proto.wandb_internal_pb2 import Record

    name = (run_dir / "wandb_id").read_text()
    lines = []
    for path in sorted((run_dir / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb")):
        for data in _records(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                lines.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    return lines


def _records(content: bytes) -> list[bytes]:
    """Return the records of a file; those that cross blocks come in parts."""
    records, parts, place = [], b"", HEADER
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:  # the rest of a block is padding
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (FULL, LAST):
            records.append(parts)
            parts = b""
    return records
