"""What an interval of training was like: collected step by step, judged, logged."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dist_train.config import RunConfig
from dist_train.engine.engine import Engine
from dist_train.monitoring.divergence import Judge
from dist_train.monitoring.metrics_log import MetricAverages, MetricsLog
from dist_train.planning.flops import peak_flops, step_flops
from dist_train.runtime.world import World
from models.objective import Objective


class Reporter:
    """Collects metrics on all ranks without waiting for the device, and writes them on rank 0.

    Args:
        config: The run's configuration.
        run_dir: The run folder.
        world: The process group.
        objective: What is trained; it judges its own metrics.
        engines: Of all networks.

    Attributes:
        timer: Where the time of a step goes.
        metric: The last interval's value of `checkpoint.keep_best`.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        world: World,
        objective: Objective,
        engines: Mapping[str, Engine],
    ) -> None:
        self.timer = PhaseTimer(world.device)
        self.metric: float | None = None
        self._config, self._run_dir, self._world = config, run_dir, world
        self._engines = engines
        self._averages = MetricAverages()
        scales = {name: engine.loss_scale for name, engine in engines.items()}
        self._judge = Judge(config.divergence, objective.diagnose, scales)
        self._peak_flops = peak_flops(config.logging.peak_tflops, world.device)
        self._flops: float | None = None
        self._first = 0
        self._log: MetricsLog | None = None

    def open(self, images_seen: int) -> None:
        """Begin the first interval of this process, with nothing to say yet."""
        self._first = images_seen
        if self._world.rank == 0:
            self._log = MetricsLog(self._config, self._run_dir, images_seen)
            if self._peak_flops:
                self._flops = step_flops(self._config.objective)

    def close(self) -> None:
        """Flush and close the log and its mirrors."""
        if self._log is not None:
            self._log.close()

    def say(self, message: str) -> None:
        """Print a line on rank 0."""
        if self._log is not None:
            self._log.say(message)

    def show_grid(self, images_seen: int, grid: Path) -> None:
        """Mirror a grid of samples."""
        if self._log is not None:
            self._log.show_grid(images_seen, grid)

    def add(self, network: str, metrics: Mapping[str, Tensor]) -> None:
        """Take in what a network's loss measured on a micro-batch."""
        self._averages.add({f"{network}/{key}": value for key, value in metrics.items()})

    def report(
        self, images_seen: int, step: int, rates: Mapping[str, float], replaced_samples: int
    ) -> str | None:
        """Reduce the interval's metrics, log them, and say what is wrong, if any. Collective.

        Args:
            images_seen: The clock.
            step: Passes over all updates.
            rates: Learning rate by network.
            replaced_samples: Images that this rank found corrupt.
        """
        images = images_seen - self._first
        if images == 0:
            return None
        metrics = self._averages.reduce(self._world)
        trouble = self._judge.find_trouble(metrics)
        self.metric = metrics.get(self._config.checkpoint.keep_best or "")
        for name, engine in self._engines.items():
            metrics[f"{name}/gradient_norm"] = engine.gradient_norm()
            metrics[f"{name}/learning_rate"] = rates[name]
            metrics[f"{name}/skipped_updates"] = engine.loss_scale.skipped
            if engine.loss_scale.dynamic:
                metrics[f"{name}/loss_scale"] = engine.loss_scale.cur_scale
        replaced = self._world.all_reduce_sum(torch.tensor(float(replaced_samples)))
        metrics["data/replaced_samples"] = float(replaced)
        metrics |= self._speed(images)
        if self._log is not None:
            self._log.write(images_seen, step, metrics)
        self._first = images_seen
        return trouble

    def rewind(self, images_seen: int, message: str) -> None:
        """Forget what came after `images_seen`: the run has gone back."""
        self._judge.forget()
        self._first = images_seen
        if self._log is not None:
            self._log.rewind(images_seen)
            self._log.say(message)

    def _speed(self, images: int) -> dict[str, float]:
        """Return how fast the interval was, and where its time went."""
        seconds, phases = self.timer.read()
        steps = images // self._config.global_batch_size
        speed = {
            "speed/images_per_second": images / seconds,
            "speed/data_wait_fraction": phases["data_wait"] / seconds,
            "memory/peak_gb": peak_memory(self._world.device),
            **{f"seconds/{name}": total / steps for name, total in phases.items()},
        }
        if self._flops and self._peak_flops:
            rate = self._flops * images / seconds / self._world.size
            speed |= {"speed/tflops_per_rank": rate / 1e12, "speed/mfu": rate / self._peak_flops}
        return speed


PHASES = ("data_wait", "forward", "backward", "update", "ema", "save")


class PhaseTimer:
    """Adds up the seconds of named phases of the loop.

    On a GPU, phases are bracketed by events that are read when the interval is reported, so that
    kernels are timed and not their launch; `data_wait` and `save` are what the host waits.

    Args:
        device: Where the networks compute.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._began = time.monotonic()

    @contextlib.contextmanager
    def phase(self, name: str, *, host: bool = False) -> Iterator[None]:
        """Time a phase; `host` measures this thread's time even where there is a GPU."""
        if host or self._device.type != "cuda":
            began = time.monotonic()
            yield
            self._seconds[name] += time.monotonic() - began
            return
        begin, end = _event(), _event()
        begin.record()
        yield
        end.record()
        self._events.append((name, begin, end))

    def read(self) -> tuple[float, dict[str, float]]:
        """Return the wall seconds since the last call, and those of each phase; start anew."""
        if self._events:
            self._events[-1][2].synchronize()
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1000
        now = time.monotonic()
        result = now - self._began, self._seconds
        self._events, self._seconds, self._began = [], dict.fromkeys(PHASES, 0.0), now
        return result


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def peak_memory(device: torch.device) -> float:
    """Return the most gigabytes that this process has held: of the GPU, or else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["VmHWM"].split()[0]) * 1024 / 1e9
