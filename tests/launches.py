"""What a device would have to do, counted without one: launched kernels and copied bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Launches(TorchDispatchMode):
    """Counts the operations that read or write memory, and the bytes of the tensors they touch.

    Views and uninitialised allocations cost nothing. Overlapping views count in full.

    Attributes:
        names: Names of the operations, in order.
        bytes: Sum over operations of the sizes of inputs and outputs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        free = function.is_view or name.startswith(("empty", "new_empty", "_unsafe_view"))
        if not free:
            tensors = {id(t): t for t in tree_leaves((args, kwargs, result)) if _is_tensor(t)}
            self.names.append(name)
            self.bytes += sum(t.numel() * t.element_size() for t in tensors.values())
        return result


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def launches(function: Any, *args: Any) -> Launches:
    """Run a function without gradients and return what it launched."""
    with torch.no_grad(), Launches() as counted:
        function(*args)
    return counted
