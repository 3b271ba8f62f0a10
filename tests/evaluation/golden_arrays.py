"""Reading of the evaluation goldens: files, the recipe of reproducible tensors, and lookups."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.detectors.inception import TAPS, FidInception
from evaluation.metrics.statistics import Gaussian, gaussian_of

Array = NDArray[Any]

PUBLIC_SALT = "public-1"
"""The salt of the set that is committed in part."""

TIMES = {None: 1, "once": 1, "twice": 2, "thrice": 3, "three": 3, "four": 4, "five": 5}
"""Numbers as READMEs of goldens spell them: "twice", "three times"."""


class Recipe:
    """Pseudo-random tensors that need no library's sampler (README of the goldens)."""

    def __init__(self, directory: Path) -> None:
        found = re.search(r"Recipe salt: `([^`]+)`", (directory / "README.md").read_text())
        assert found, f"{directory}/README.md names no recipe salt"
        self.salt = found[1]

    def uni(self, name: str, shape: tuple[int, ...]) -> Array:
        digest = hashlib.sha256(f"{self.salt}:{name}".encode()).digest()
        philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
        raw = philox.random_raw(int(np.prod(shape, dtype=np.int64)))
        return ((raw >> np.uint64(11)) * 2.0**-53).reshape(shape)

    def unit(self, name: str, shape: tuple[int, ...]) -> Array:
        return (2 * self.uni(name, shape) - 1) * np.sqrt(3)

    def gauss(self, name: str, shape: tuple[int, ...]) -> Array:
        radius = np.sqrt(-2 * np.log1p(-self.uni(name + "/a", shape)))
        return radius * np.cos(2 * np.pi * self.uni(name + "/b", shape))

    def features(self, tag: str, n: int, dim: int, rank: int, noise: float, shift: float) -> Array:
        basis = self.gauss(f"lr/A/{dim}/{rank}", (rank, dim)) / np.sqrt(rank)
        scales = 3 * np.arange(1, rank + 1) ** -0.5
        mean = 0.4 + shift * self.unit(f"lr/shift/{dim}", (dim,))
        x = mean + (self.gauss(f"{tag}/Z", (n, rank)) * scales) @ basis
        return x + noise * self.gauss(f"{tag}/E", (n, dim)) if noise else x

    def state_dict(self) -> dict[str, torch.Tensor]:
        with torch.device("meta"):
            shapes = {k: tuple(v.shape) for k, v in FidInception().state_dict().items()}
        return {key: self._tensor(key, shape) for key, shape in shapes.items()}

    def _tensor(self, key: str, shape: tuple[int, ...]) -> torch.Tensor:
        if key.endswith("num_batches_tracked"):
            return torch.zeros((), dtype=torch.int64)
        if key.endswith("conv.weight"):
            values = self.unit(key, shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif key == "fc.weight":
            values = self.unit(key, shape) * np.sqrt(1 / shape[1])
        elif key.endswith("bn.weight"):
            values = 1 + 0.1 * self.unit(key, shape)
        elif key.endswith("running_var"):
            values = 1 + 0.2 * self.unit(key, shape)
        else:
            values = 0.1 * self.unit(key, shape)
        return torch.from_numpy(values).to(torch.float32)


class Goldens:
    """One directory of evaluation goldens."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.recipe = Recipe(directory)

    def names(self) -> list[tuple[str, str]]:
        """Return (file, array) of every array of every file but the README."""
        pairs = []
        for path in sorted(self.directory.iterdir()):
            if path.suffix == ".npz":
                pairs += [(path.name, name) for name in sorted(self.file(path.name).files)]
            elif path.name != "README.md":
                pairs.append((path.name, ""))
        return pairs

    @functools.cache  # noqa: B019 - lives as long as the session
    def file(self, name: str) -> Any:
        return np.load(self.directory / name, allow_pickle=False)

    @functools.cache  # noqa: B019
    def get(self, file: str, name: str) -> Array:
        return self.file(file)[name]

    def input(self, name: str) -> Array:
        return self.get("metrics_inputs.npz", name)

    def pair(self, case: str) -> tuple[Array, Array]:
        """Return (generated, reference) features of a named set."""
        if case == "same" or case.endswith("_same"):
            reference = self.pair(case.removesuffix("same").removesuffix("_") or "main")[1]
            return reference, reference
        if case == "dup":
            gen, ref = self.pair("main")
            rows, times = self.duplicates()
            return np.concatenate([gen, *[gen[:rows]] * times]), ref
        if case == "blocks":
            return self.input("pr_gen"), self.input("pr_ref")
        suffix = "" if case == "main" else f"_{case}"
        return self.input(f"gen{suffix}"), self.input(f"ref{suffix}")

    def duplicates(self) -> tuple[int, int]:
        """Return how many first rows `dup` repeats, and how often: only the README has it."""
        text = (self.directory / "README.md").read_text()
        found = re.search(r"`dup` = gen followed by its first (\d+) rows(?: (\w+))?", text)
        assert found, f"{self.directory}/README.md does not say which rows `dup` repeats"
        return int(found[1]), TIMES.get(found[2], 0) or int(found[2])

    @functools.cache  # noqa: B019
    def gaussians(self, case: str) -> tuple[Gaussian, Gaussian]:
        gen, ref = self.pair(case)
        return gaussian_of(gen), gaussian_of(ref)

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def recipe_pair(self, case: str) -> tuple[Array, Array]:
        """Return (generated, reference) 2048-d features of a recipe case."""
        n_ref, n_gen, rank = (int(v) for v in self.input(f"fid2048_{case}_n"))
        noise = float(self.input(f"fid2048_{case}_noise"))
        dtype = self.input(f"fid2048_{case}_probe_ref").dtype
        ref = self.recipe.features(f"{case}/ref", n_ref, 2048, rank, noise, 0.0)
        gen = self.recipe.features(f"{case}/gen", n_gen, 2048, rank, noise, 0.02)
        return gen.astype(dtype), ref.astype(dtype)

    @functools.cache  # noqa: B019
    def spatial_pair(self) -> tuple[Array, Array]:
        """Return (generated, reference) 2023-d features in the order C, H, W."""
        n_ref, n_gen, rank = (int(v) for v in self.input("sfid_n"))
        noise = self._spatial_noise()
        ref = self.recipe.features("sp/ref", n_ref, 2023, rank, noise, 0.0)
        gen = self.recipe.features("sp/gen", n_gen, 2023, rank, noise, 0.02)
        return gen.astype(np.float32), ref.astype(np.float32)

    def _spatial_noise(self) -> float:
        """Return the noise of the sFID case: only the README has it."""
        text = (self.directory / "README.md").read_text()
        found = re.search(r'"sp/gen", .*?noise ([0-9.]*[0-9])', text)
        assert found, f"{self.directory}/README.md does not say the noise of the sFID case"
        return float(found[1])

    @functools.cache  # noqa: B019
    def network(self) -> FidInception:
        network = FidInception(tuple(TAPS)).eval().requires_grad_(False)
        network.load_state_dict(self.recipe.state_dict())
        return network

    def image(self, file: str, name: str) -> torch.Tensor:
        """Return an image as uint8 [1, 3, H, W]."""
        return torch.from_numpy(self.get(file, name)).permute(2, 0, 1)[None]
