"""Reading golden vectors: every array must be read, every random draw must be replayed in order."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
DTYPES = {"f64": torch.float64, "f32": torch.float32}


class Arrays:
    """Arrays of a golden file, or those with a common prefix; remembers which have been read.

    Attributes:
        floor: Smallest tolerance of comparisons, for inputs that are known to it only.
        path: The file; None for a part of one.
    """

    floor = 0.0
    path: Path | None = None

    def __init__(
        self, arrays: Mapping[str, np.ndarray], prefix: str = "", unread: set | None = None
    ):
        self._arrays, self._prefix = arrays, prefix
        self.unread = set(arrays) if unread is None else unread

    @classmethod
    def load(cls, path: Path) -> Arrays:
        with np.load(path, allow_pickle=False) as file:
            arrays = cls({name: file[name] for name in file.files})
        arrays.path = path
        return arrays

    def under(self, prefix: str) -> Arrays:
        return Arrays(self._arrays, self._prefix + prefix, self.unread)

    def names(self) -> list[str]:
        skip = len(self._prefix)
        return [name[skip:] for name in self._arrays if name.startswith(self._prefix)]

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._arrays

    def numpy(self, name: str) -> np.ndarray:
        self.unread.discard(self._prefix + name)
        return self._arrays[self._prefix + name]

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        tensor = torch.from_numpy(np.array(self.numpy(name))).to(torch.get_default_device())
        return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor

    def number(self, name: str) -> float:
        return float(self.numpy(name))

    def config(self) -> dict[str, Any]:
        return json.loads(str(self.numpy("config_json")))

    def cases(self, pattern: str) -> Iterator[Arrays]:
        """Yield the sub-views under each distinct match of `pattern`; at least one must exist."""
        prefixes = dict.fromkeys(m[0] for name in self.names() if (m := re.match(pattern, name)))
        assert prefixes, f"no arrays match {pattern}"
        for prefix in prefixes:
            yield self.under(prefix)

    def weights(self, prefix: str = "w/") -> dict[str, Tensor]:
        view = self.under(prefix)
        return {name: view.tensor(name) for name in view.names()}

    def load_into(self, module: nn.Module, dtype: torch.dtype, prefix: str = "w/") -> nn.Module:
        weights = self.weights(prefix)
        assert list(module.state_dict()) == list(weights)
        module.load_state_dict(weights)
        return module.to(dtype)

    def check(self, name: str, value: Tensor, tolerance: float, *, scale: float = 0.0) -> None:
        """Compare with the array; `tolerance` is relative to its largest entry, or `scale`."""
        wanted = self.tensor(name).double()
        found = value.detach().double()
        assert found.shape == wanted.shape, (name, found.shape, wanted.shape)
        scale = max(float(wanted.abs().max()), scale, 1e-30)
        error = float((found - wanted).abs().max()) / scale
        tolerance = max(tolerance, self.floor)
        assert error <= tolerance, f"{self._prefix}{name}: error {error:.2e} > {tolerance:.0e}"

    def check_all_read(self) -> None:
        assert not self.unread, f"arrays of an uncovered kind: {sorted(self.unread)[:5]}"


class ReplayedDraws:
    """Draws (models.sample_rng) that return recorded tensors in order, whatever is asked for."""

    def __init__(self, recorded: Sequence[Tensor]) -> None:
        self._recorded = list(recorded)
        self._batch = len(recorded[0])

    def __len__(self) -> int:
        return self._batch

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        values = self._recorded.pop(0)
        assert values.is_floating_point()
        return values

    def rand(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        raise AssertionError("no uniform draw is recorded")

    def randint(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        values = self._recorded.pop(0)
        assert int(values.max()) < high
        return values

    @property
    def exhausted(self) -> bool:
        return not self._recorded
