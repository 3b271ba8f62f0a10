"""Running times of samplers, by the protocol of WaveDiff's paper (docs/reference/wavediff.md#8).

The mean seconds of a batch: all steps of the sampler and the inverse transform, from noise that is
drawn beforehand to images that are not quantised yet. Times depend on the settings of a model and
not on its weights, so an untrained one has the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.digest import short_hash
from models.config_io import to_json
from models.families import AnyObjective
from models.safe_files.documents import Format
from models.safe_files.nearest import check_there
from models.sampler import Sampler, balanced_labels

PUBLISHED_BATCH, PUBLISHED_WARM_UP, PUBLISHED_REPEATS = 100, 10, 300


@dataclass(frozen=True, kw_only=True)
class Times:
    """Running times of a sampler.

    Attributes:
        title: Name of the model.
        request: Digest of the model's settings, sizes and device: what a file is reused by.
        device: Name of the device.
        torch: Version of PyTorch.
        batch_size: Images of a batch.
        warm_up: Batches before the clock starts.
        repeats: Batches that are timed.
        seconds: Mean seconds per batch.
        deviation: Standard deviation over the batches, in seconds.
        nfe: Network evaluations per image, over all stages.
        parameters: Parameters of the networks of all stages.
        gmacs: Billions of multiply-accumulates per image and network evaluation (mean over them).
        gigabytes: Peak memory of one image, on GPUs.
    """

    title: str
    request: str
    device: str
    torch: str
    batch_size: int
    warm_up: int
    repeats: int
    seconds: float
    deviation: float
    nfe: int
    parameters: int
    gmacs: float
    gigabytes: float | None = None


FORMAT = Format(
    schema=Times, version=1, remedy="measure again, with another --out or after removal"
)


@dataclass(frozen=True, kw_only=True)
class TimingRequest:
    """What is timed.

    Attributes:
        objectives: The model, or a relay's stages in order.
        title: Its name.
        out: The file of the times.
        batch_size: Images of a batch.
        warm_up: Batches before the clock starts.
        repeats: Batches that are timed.

    Raises:
        ValueError: A number is too small, or the file is not one of times.
    """

    objectives: tuple[AnyObjective, ...]
    title: str
    out: Path
    batch_size: int = PUBLISHED_BATCH
    warm_up: int = PUBLISHED_WARM_UP
    repeats: int = PUBLISHED_REPEATS

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("warm_up", 1), ("repeats", 2)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"--{name.replace('_', '-')}={value} must be at least {least}")
        if self.out.exists():
            read_times(self.out)

    def identity(self, device: str) -> str:
        """Return the digest of what times depend on."""
        sizes = (self.batch_size, self.warm_up, self.repeats)
        return short_hash([*map(to_json, self.objectives), sizes, device, torch.__version__])


def read_times(path: Path) -> Times:
    """Read a file of times. Raises DocumentError if it is damaged, or another file."""
    check_there(path, "a file of running times")
    return FORMAT.read(path)


def measure(request: TimingRequest, device: torch.device) -> Times:
    """Measure, write and return the running times of a sampler; a file of the same is reused."""
    identity = request.identity(_name(device))
    if request.out.exists() and (old := read_times(request.out)).request == identity:
        return old
    sampler, parameters = _untrained(request.objectives, device)
    nfe = sum(sampler.nfe.values())
    gmacs, gigabytes = _cost(sampler)
    timed = _seconds(sampler, request)
    times = Times(
        title=request.title,
        request=identity,
        device=_name(device),
        torch=torch.__version__,
        batch_size=request.batch_size,
        warm_up=request.warm_up,
        repeats=request.repeats,
        seconds=statistics.mean(timed),
        deviation=statistics.pstdev(timed),
        nfe=nfe,
        parameters=parameters,
        gmacs=gmacs / nfe,
        gigabytes=gigabytes,
    )
    request.out.parent.mkdir(parents=True, exist_ok=True)
    FORMAT.write(request.out, vars(times))
    return times


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _untrained(objectives: Sequence[AnyObjective], device: torch.device) -> tuple[Sampler, int]:
    """Return the sampler of networks with initial weights, and the number of their parameters."""
    sampler: Sampler | None = None
    parameters = 0
    for config in objectives:
        objective = config.build()
        network = objective.build_networks()[objective.sampled_network]
        network = network.to(device).eval().requires_grad_(False)
        parameters += sum(parameter.numel() for parameter in network.parameters())
        sampler = config.build_sampler(network, sampler)
    assert sampler is not None
    return sampler, parameters


@torch.inference_mode()
def _cost(sampler: Sampler) -> tuple[float, float | None]:
    """Return billions of multiply-accumulates of one image, and its peak memory on GPUs in GB."""
    from torch.utils.flop_counter import FlopCounterMode

    is_gpu = sampler.device.type == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(sampler.device)
    with FlopCounterMode(display=False) as counter:
        sampler.generate(BatchDraws(1, sampler.device), _labels(sampler, 1))
    memory = torch.cuda.max_memory_allocated(sampler.device) / 1e9 if is_gpu else None
    return counter.get_total_flops() / 2e9, memory


@torch.inference_mode()
def _seconds(sampler: Sampler, request: TimingRequest) -> list[float]:
    """Return the seconds of each timed batch."""
    draws = BatchDraws(request.batch_size, sampler.device)
    labels = _labels(sampler, request.batch_size)
    timed = []
    for _ in range(request.warm_up + request.repeats):
        draws.restart()
        _synchronise(sampler.device)
        started = time.perf_counter()
        sampler.generate(draws, labels)
        _synchronise(sampler.device)
        timed.append(time.perf_counter() - started)
    return timed[request.warm_up :]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _labels(sampler: Sampler, batch_size: int) -> Tensor | None:
    labels = balanced_labels(range(batch_size), range(sampler.label_dim))
    return None if labels is None else labels.to(sampler.device)


class BatchDraws:
    """Draws (`models.sample_rng.Draws`) of a whole batch at once; the first is made beforehand."""

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self._options: Any = {"device": device}
        self._batch_size = batch_size
        self._first: Tensor | None = None
        self._is_first = True

    def __len__(self) -> int:
        return self._batch_size

    def restart(self) -> None:
        """Give the same first draw again."""
        self._is_first = True

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return iid standard normal values, [B, *shape]."""
        if self._is_first and self._first is not None:
            self._is_first = False
            return self._first
        drawn = torch.randn(self._batch_size, *shape, dtype=dtype, **self._options)
        if self._is_first:
            self._first, self._is_first = drawn, False
        return drawn

    def rand(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """Return iid uniform values in [0, 1), [B, *shape]."""
        return torch.rand(self._batch_size, *shape, dtype=dtype, **self._options)

    def randint(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Return iid integers in [0, high), int64 [B, *shape]."""
        return torch.randint(high, (self._batch_size, *shape), **self._options)
