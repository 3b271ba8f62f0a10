"""The copy of a rank's state that a checkpoint is written from, allocated once.

Fresh memory for each checkpoint would cost more than the copy itself: the kernel has to hand out
and clear every page of it, and pinning them for a GPU is slower still.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

CHUNK = 1 << 24
"""Bytes that are hashed and written at a time; both let the training thread run meanwhile."""
ALIGNMENT = 8
"""Of the data in a safetensors file."""


class StateBuffer:
    """A flat float32 buffer in the host's memory, and the names of what is in it.

    Args:
        device: Where the tensors to come live. For a GPU the buffer is pinned, so that the copy is
            queued among the kernels, before those that come later, and nobody waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._header = b""
        self._flat = torch.empty(0)
        self._copied: torch.cuda.Event | None = None

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy float32 tensors; what is done to them after this has returned does not matter."""
        sizes = [tensor.numel() for tensor in tensors.values()]
        if sum(sizes) != len(self._flat):
            pinned = self._device.type == "cuda"
            self._flat = torch.empty(sum(sizes), pin_memory=pinned)
        self._header = _header({name: tensor.shape for name, tensor in tensors.items()})
        parts = torch.split(self._flat, sizes)
        places = [
            part.view(tensor.shape) for part, tensor in zip(parts, tensors.values(), strict=True)
        ]
        if places:
            with torch.no_grad():
                torch._foreach_copy_(places, list(tensors.values()), non_blocking=True)
        if self._device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(self._device))

    def write(self, path: Path) -> dict[str, int | str]:
        """Write a safetensors file, durably; returns its `size` and `sha256`.

        The hash is of what is in memory, not of what was read back: a disk that lies is found out.
        """
        if self._copied is not None:
            self._copied.synchronize()
        data = self._flat.numpy().data.cast("B") if len(self._flat) else memoryview(b"")
        digest = hashlib.sha256(self._header)
        with open(path, "wb", buffering=0) as file:
            _write_all(file.fileno(), memoryview(self._header))
            for start in range(0, len(data), CHUNK):
                chunk = data[start : start + CHUNK]
                digest.update(chunk)
                _write_all(file.fileno(), chunk)
            os.fsync(file.fileno())
        return {"size": len(self._header) + len(data), "sha256": digest.hexdigest()}


def _header(shapes: Mapping[str, torch.Size]) -> bytes:
    """Return what precedes the data: the length of a JSON text, and that text."""
    entries, start = {}, 0
    for name, shape in shapes.items():
        end = start + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write_all(descriptor: int, data: memoryview) -> None:
    """Write everything: one call may write less, for instance just before a disk is full."""
    while data:
        data = data[os.write(descriptor, data) :]
