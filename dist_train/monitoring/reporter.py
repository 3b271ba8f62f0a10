"""What an interval of training was like: collected step by step, checked, logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dist_train.engine.engine import Engine
from dist_train.engine.shards import ParameterShard, non_finite_values
from dist_train.monitoring.divergence import DivergenceCheck
from dist_train.monitoring.metrics_log import MetricAverages, MetricsLog
from dist_train.monitoring.throughput import Throughput
from dist_train.runtime.world import World


class Reporter:
    """Collects metrics on all ranks without waiting for the device, and writes them on rank 0.

    Args:
        world: The process group.
        engines: Of all networks.
        check: Decides whether training diverged.
        log: Where metrics go; opened on rank 0 only.
        throughput: Measures speed.
        best_metric: Name of the metric that the best checkpoint is chosen by; None: none is.

    Attributes:
        timer: Where the time of a step goes.
        metric: The last interval's value of `best_metric`.
    """

    def __init__(
        self,
        world: World,
        engines: Mapping[str, Engine],
        *,
        check: DivergenceCheck,
        log: MetricsLog,
        throughput: Throughput,
        best_metric: str | None,
    ) -> None:
        self.timer = throughput.timer
        self.metric: float | None = None
        self._world, self._engines = world, engines
        self._check, self._throughput, self._best_metric = check, throughput, best_metric
        self._log = log if world.rank == 0 else None
        self._averages = MetricAverages()
        self._first = 0

    def open(self, images_seen: int) -> None:
        """Start the first interval of this process."""
        self._first = images_seen
        if self._log is not None:
            self._log.open(images_seen, self._world.size)
            self._throughput.prepare()

    def close(self) -> None:
        """Flush and close the log and its loggers."""
        if self._log is not None:
            self._log.close()

    def say(self, message: str) -> None:
        """Print a line on rank 0."""
        if self._log is not None:
            self._log.say(message)

    def show_grid(self, images_seen: int, grid: Path) -> None:
        """Say where a grid of samples is, and send it to the loggers."""
        if self._log is not None:
            self._log.say(f"newest grid of samples: {grid}")
            self._log.show_grid(images_seen, grid)

    def send_results(self) -> None:
        """Send new results of evaluations to the loggers."""
        if self._log is not None:
            self._log.send_results()

    def add(self, network: str, metrics: Mapping[str, Tensor]) -> None:
        """Take in what a network's loss measured on a micro-batch."""
        self._averages.add({f"{network}/{key}": value for key, value in metrics.items()})

    def report(
        self,
        images_seen: int,
        step: int,
        rates: Mapping[str, float],
        replaced_samples: int,
        state: Mapping[str, Sequence[ParameterShard]],
    ) -> str | None:
        """Reduce the interval's metrics, log them, and say what is wrong, if any. Collective.

        Args:
            images_seen: The clock.
            step: Passes over all updates.
            rates: Learning rate by network.
            replaced_samples: Images that this rank found corrupt.
            state: This rank's part of what would be saved, by group, to be looked through for
                values that are not finite.
        """
        images = images_seen - self._first
        if images == 0:
            return None
        metrics = self._averages.reduce(self._world)
        replaced, non_finite = self._count(replaced_samples, state)
        norms = {name: engine.gradient_norm() for name, engine in self._engines.items()}
        problem = self._check.find_problem(metrics, norms, non_finite)
        self.metric = metrics.get(self._best_metric or "")
        for name, engine in self._engines.items():
            metrics[f"{name}/gradient_norm"] = norms[name]
            metrics[f"{name}/learning_rate"] = rates[name]
            metrics[f"{name}/skipped_updates"] = engine.loss_scale.skipped
            if engine.loss_scale.dynamic:
                metrics[f"{name}/loss_scale"] = engine.loss_scale.cur_scale
        metrics["data/replaced_samples"] = replaced
        metrics |= self._throughput.read(images)
        if self._log is not None:
            self._log.write(images_seen, step, metrics)
        self._first = images_seen
        return problem

    def _count(
        self, replaced_samples: int, state: Mapping[str, Sequence[ParameterShard]]
    ) -> tuple[float, list[str]]:
        """Return the corrupt images of all ranks, and the groups with non-finite values."""
        counts = [torch.tensor(float(replaced_samples)), *map(non_finite_values, state.values())]
        totals = torch.stack([count.cpu() for count in counts])
        replaced, *bad = self._world.all_reduce_sum(totals).tolist()
        return replaced, [
            f"the weights or moments of {group}"
            for group, count in zip(state, bad, strict=True)
            if count
        ]

    def rewind(self, images_seen: int, message: str) -> None:
        """Forget what came after `images_seen`: the run was rolled back."""
        self._check.forget()
        self._first = images_seen
        if self._log is not None:
            self._log.rewind(images_seen, message)
            self._log.say(message)
