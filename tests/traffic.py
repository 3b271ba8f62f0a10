"""Counting what a rank sends, from the collectives that it really calls."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SMALLEST = 1024
"""Bytes below which a message (a norm, a flag) is left out."""

SENT = {"allreduce_": 2, "reduce_": 1, "_reduce_scatter_base_": 1, "alltoall_base_": 1,
        "_allgather_base_": 1, "allgather_": 1, "broadcast_": 1}  # fmt: skip
"""How often a ring sends its largest tensor, less the 1/N of it that stays where it is."""


class TrafficMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the messages of this rank while it is active.

    Args:
        ranks: Size of the process group.

    Attributes:
        sent: Bytes that a rank sends if every collective is a ring.
        messages: Name and bytes of each collective.
    """

    def __init__(self, ranks: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent = 0.0
        self.messages: list[tuple[str, int]] = []
        self._ranks = ranks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and take note of it if it is a collective."""
        if func.namespace == "c10d":
            name = func._opname
            tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
            size = max((t.numel() * t.element_size() for t in tensors), default=0)
            if size >= SMALLEST:
                self.messages.append((name, size))
                self.sent += SENT[name] * size * (self._ranks - 1) / self._ranks
        return func(*args, **(kwargs or {}))
