"""A golden .npz that knows which of its arrays a test has looked at."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Golden:
    """Arrays by name; `assert_all_used` fails if a test has passed any of them over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path, allow_pickle=False) as file:
            self._arrays = {name: file[name] for name in file.files}
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> Tensor:
        """Return a numeric array as a tensor."""
        return torch.from_numpy(np.array(self.array(name))).to(torch.get_default_device())

    def array(self, name: str) -> NDArray[Any]:
        self._used.add(name)
        return self._arrays[name]

    def get(self, name: str) -> Tensor | None:
        """Return a numeric array as a tensor, or None if the file has none of that name."""
        if name not in self:
            return None
        return self[name]

    def json(self, name: str) -> Any:
        return json.loads(str(self.array(name)))

    def names(self, pattern: str) -> list[str]:
        """Return group 1 of every array name that a regular expression matches, in file order."""
        matches = (re.fullmatch(pattern, name) for name in self._arrays)
        return list(dict.fromkeys(match.group(1) for match in matches if match))

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return all arrays below a prefix, by the rest of their names."""
        return {n.removeprefix(prefix): self[n] for n in self._arrays if n.startswith(prefix)}

    def assert_all_used(self) -> None:
        missed = sorted(self._arrays.keys() - self._used)
        assert not missed, f"{self.path.name}: no check covers {', '.join(missed[:8])}"


def readme_of(path: Path, of: str = "") -> str:
    """Return the README beside a golden file, or its section `of` a file; "" if there is none."""
    readme = path.with_name("README.md")
    text = readme.read_text() if readme.exists() else ""
    if not of:
        return text
    found = re.search(rf"^## {re.escape(of)}\b.*?(?=^## |\Z)", text, re.M | re.S)
    return found[0] if found else ""


def assert_near(got: Tensor, expected: Tensor, absolute: float, what: str) -> None:
    """Compare in float64, shapes included."""
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    error = float((got.double() - expected.double()).abs().max()) if expected.numel() else 0.0
    assert error <= absolute, f"{what}: off by {error:.3g}, allowed {absolute:.3g}"


def assert_near_max(got: Tensor, expected: Tensor, relative: float, what: str) -> None:
    """Compare relative to the expected array's largest absolute value."""
    assert_near(got, expected, relative * float(expected.double().abs().max()), what)


def assert_close_each(got: Tensor, expected: Tensor, relative: float, what: str) -> None:
    """Compare each entry relative to itself; zeros must be met exactly."""
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    error = (got.double() - expected.double()).abs() - relative * expected.double().abs()
    assert float(error.max()) <= 0, f"{what}: off by more than {relative:.3g} of an entry"
