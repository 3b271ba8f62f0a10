"""The training loop, one for every objective: losses keyed by the network that they update.

Its clock is `images_seen`. Everything random in a step is a function of (seed, position in the
global sample order), and everything scheduled is a function of images seen, so the state of a run
is its tensors and a few integers: any number of ranks, any ZeRO stage and any split into
micro-batches continues it with the same global batches and the same noise.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from data_pipelines.packed.manifest import DatasetInfo
from dist_train.checkpoint.format import (
    CheckpointError,
    CheckpointReader,
    TrainState,
    find_newest_complete,
)
from dist_train.checkpoint.writer import CheckpointWriter
from dist_train.config import AdamConfig, DivergencePolicy
from dist_train.ema import MAIN, ShardedEma, average_group
from dist_train.engine.engine import Engine, parameter_lists, updating_only
from dist_train.engine.self_check import SelfCheck
from dist_train.engine.shards import ParameterShard
from dist_train.examples import ExampleStream
from dist_train.monitoring.divergence import DivergedError
from dist_train.monitoring.profiler import StepProfiler
from dist_train.monitoring.reporter import Reporter
from dist_train.planning.checks import Batches, check_length
from dist_train.runtime.preemption import StopRequest
from dist_train.runtime.run_data import check_same_data
from dist_train.runtime.watchdog import Watchdog, blaming_lost_ranks
from dist_train.runtime.world import World
from dist_train.snapshots import SnapshotWriter
from models.objective import Example, Objective

__all__ = ["DivergedError", "Intervals", "Outcome", "Parts", "Trainer"]


class Outcome(enum.Enum):
    """How `Trainer.fit` ended."""

    FINISHED = "finished"
    PREEMPTED = "preempted"


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Length of training and of what recurs in it, in images."""

    total: int
    log: int
    checkpoint: int
    snapshot: int


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop works with; `build_trainer` (build.py) makes them from a configuration.

    Attributes:
        objective: What is trained.
        examples: The training set, as losses take it.
        engines: One per network.
        called: The networks as losses call them, with those that they only read.
        average: That of `called` which follows the main average; None if losses do not read it.
        optim: Learning rates by network.
        emas: Averages of the sampled network by name.
        reporter: Metrics and logs.
        checkpoints: Writes all state.
        snapshots: Writes the averages.
        profiler: Traces some steps.
        watchdog: Ends a rank that hangs.
        warnings: What to say at the start.
    """

    objective: Objective
    examples: ExampleStream
    engines: Mapping[str, Engine]
    called: Mapping[str, nn.Module]
    average: nn.Module | None
    optim: Mapping[str, AdamConfig]
    emas: Mapping[str, ShardedEma]
    reporter: Reporter
    checkpoints: CheckpointWriter
    snapshots: SnapshotWriter
    profiler: StepProfiler
    watchdog: Watchdog
    warnings: Sequence[str] = ()


class Trainer:
    """A run: its parts, its clock, and the directory that it lives in.

    Args:
        parts: What it works with.
        batches: How a step's samples are split.
        intervals: When it ends, and when it logs and saves.
        divergence: What follows when training goes wrong.
        run_dir: The run directory; `fit` resumes its newest complete checkpoint.
        world: The process group.
    """

    def __init__(
        self,
        parts: Parts,
        batches: Batches,
        intervals: Intervals,
        divergence: DivergencePolicy,
        run_dir: Path,
        world: World,
    ) -> None:
        self.parts, self.batches, self.intervals = parts, batches, intervals
        self.run_dir, self.world = run_dir, world
        self.engines, self.losses = parts.engines, parts.objective.losses()
        self.images_seen = self.step = self.data_offset = 0
        self._divergence, self._data = divergence, parts.examples.pipeline.info
        networks = {name: engine.network for name, engine in parts.engines.items()}
        self._parameters = parameter_lists(networks)
        self._notes: list[str] = []
        self._retries = False
        self._checks: list[SelfCheck] = []
        self._roll_backs = 0

    def fit(self, begin: Callable[[DatasetInfo], object] = lambda info: None) -> Outcome:
        """Train to the end, or until a signal asks to stop; the state is saved in both cases.

        A run that is asked to stop in its last step is finished.

        Args:
            begin: Called with the set's description once the state is restored: nothing can reject
                the run any more, and nothing was written yet.

        Raises:
            DivergedError: Training diverged, and the policy says stop.
            SelfCheckError: What would be saved is not what is trained.
            CheckpointError: None of those there is complete.
            ConfigError: The checkpoint was trained on another set.
            StorageError: Checkpoints, or the last snapshot, could not be written for too long.
        """
        parts, intervals = self.parts, self.intervals
        try:
            self._notes = self._resume()
            self._refresh_average()
            self._begin_checks()
            begin(self._data)
            parts.reporter.open(self.images_seen)
            for note in [*parts.warnings, *self._notes]:
                parts.reporter.say(note)
            with StopRequest() as stop, parts.watchdog, blaming_lost_ranks(self.world):
                if self.images_seen == 0:
                    self._write_snapshots()
                examples = self._examples()
                parts.reporter.timer.read()  # what took time until now was no training
                while self.images_seen < intervals.total:
                    self._train_step(examples)
                    self._checks = [check for check in self._checks if not check.passed()]
                    saving = self._checkpoint_is_due()
                    sampling = self._crossed(intervals.snapshot)
                    if saving or sampling or self._crossed(intervals.log):
                        problem = self._report()  # before saving: what diverged is never saved
                        if problem:
                            self._roll_back(problem)
                            examples = self._examples()
                            continue
                    if sampling:
                        self._write_snapshots()
                    if saving:
                        self._begin_checkpoint()
                    stopping = self._agree_to_stop(stop)
                    if stopping and self.images_seen < intervals.total:
                        if problem := self._report():
                            raise DivergedError(problem)
                        self._save()
                        return Outcome.PREEMPTED
                self._save()
                self._write_snapshots(required=True)
            return Outcome.FINISHED
        finally:
            self.close()

    def close(self) -> None:
        """Close files, logs and the data pipeline."""
        self.parts.profiler.close()
        self.parts.reporter.close()
        self.parts.examples.close()

    def timed_steps(self, numbers: Iterable[int]) -> Iterator[float]:
        """Train steps that nothing saves or reports, as if they had these numbers.

        Yields:
            The seconds of each, once the device has finished it.
        """
        examples = self._examples()
        for number in numbers:
            self.step, began = number, time.perf_counter()
            self._train_step(examples)
            if self.world.device.type == "cuda":
                torch.cuda.synchronize()
            yield time.perf_counter() - began

    def _begin_checks(self) -> None:
        """Compare what would be saved with what is trained, now and after the next update."""
        self._checks = [SelfCheck(name, e, self.world) for name, e in self.engines.items()]

    # One step.

    def _train_step(self, examples: Iterator[Example]) -> None:
        parts, timer = self.parts, self.parts.reporter.timer
        data = f"the data for step {self.step}"
        with parts.watchdog.storage(data), timer.phase("data_wait", host=True):
            batch = [next(examples) for _ in range(self.batches.accumulation_steps)]
        parts.watchdog.beat(f"step {self.step}")
        for name, loss_fn in self.losses.items():
            rate, engine = self._learning_rate(name), self.engines[name]
            with updating_only(name, self._parameters):
                for example in batch:
                    with timer.phase("forward"):
                        loss, metrics = loss_fn(parts.called, example, self.step)
                    with timer.phase("backward"):
                        engine.backward(loss)
                    with timer.phase("save", host=True):
                        parts.checkpoints.wait_for_copy()
                    with timer.phase("update"):
                        engine.step(rate)
                    parts.reporter.add(name, metrics)
        with timer.phase("ema"):
            for ema in parts.emas.values():
                ema.update(self.images_seen, self.batches.total)
            self._refresh_average()
        self.images_seen += self.batches.total
        self.step += 1
        parts.profiler.step()

    def _refresh_average(self) -> None:
        if self.parts.average is not None:
            self.parts.emas[MAIN].copy_to(self.parts.average, self.world)

    def _examples(self) -> Iterator[Example]:
        return self.parts.examples.start(self.images_seen + self.data_offset)

    def _learning_rate(self, name: str) -> float:
        adam = self.parts.optim[name]
        return adam.schedule.rate(adam.lr, self.images_seen)

    def _crossed(self, interval: int) -> bool:
        """Whether the last step reached or passed a multiple of `interval`, or the end."""
        before = self.images_seen - self.batches.total
        ended = self.images_seen >= self.intervals.total
        return ended or self.images_seen // interval > before // interval

    # What leaves the loop: metrics, checkpoints, snapshots.

    def _report(self) -> str | None:
        """Report the interval that ends here, and return what is wrong, if anything."""
        rates = {name: self._learning_rate(name) for name in self.engines}
        replaced = self.parts.examples.replaced
        return self.parts.reporter.report(
            self.images_seen, self.step, rates, replaced, self._groups()
        )

    def _groups(self) -> dict[str, list[ParameterShard]]:
        """Return all tensors of the run's state that this rank owns, by group."""
        sampled, emas = self.parts.objective.sampled_network, self.parts.emas
        groups = {name: engine.owned() for name, engine in self.engines.items()}
        return groups | {average_group(sampled, name): emas[name].shards() for name in emas}

    def _checkpoint_is_due(self) -> bool:
        """Whether to write one now: at each interval, but after a failure when its pause ends."""
        if self.parts.checkpoints.pausing:
            return self._retries
        return self._crossed(self.intervals.checkpoint)

    def _state(self) -> TrainState:
        return TrainState(
            images_seen=self.images_seen,
            step=self.step,
            updates={name: engine.updates for name, engine in self.engines.items()},
            loss_scales={name: engine.loss_scale.state() for name, engine in self.engines.items()},
            data_offset=self.data_offset,
            data_digest=self._data.identity,
            metric=self.parts.reporter.metric,
        )

    def _begin_checkpoint(self) -> None:
        saving = self.parts.reporter.timer.phase("save", host=True)
        with self.parts.watchdog.storage("a checkpoint"), saving:
            self.parts.checkpoints.begin(self._state(), self._groups())

    def _save(self) -> None:
        """Have the present state on disk before returning. Raises StorageError if it cannot be."""
        with self.parts.watchdog.storage("the last checkpoint"):
            self.parts.checkpoints.save(self._state(), self._groups())

    def _agree_to_stop(self, stop: StopRequest) -> bool:
        """Share all ranks' flags: settle a checkpoint that all are done with; stop if any must."""
        writer = self.parts.checkpoints
        flags = torch.tensor([stop.requested, writer.at_rest, writer.due]).float()
        stops, at_rest, due = self.world.all_reduce_sum(flags).tolist()
        self._retries = due > 0
        if writer.pending and at_rest == self.world.size and not stops:
            with self.parts.watchdog.storage("a checkpoint"):
                writer.settle()
        return bool(stops > 0)

    def _write_snapshots(self, required: bool = False) -> None:
        parts = self.parts
        shapes = self.engines[parts.objective.sampled_network].shapes
        with parts.watchdog.storage("a snapshot"):
            grid = parts.snapshots.write(self.images_seen, parts.emas, shapes, required=required)
            parts.reporter.send_results()
        if grid is not None:
            parts.reporter.show_grid(self.images_seen, grid)

    # Resuming, and rolling back.

    def _resume(self) -> list[str]:
        """Restore the newest complete checkpoint, if any; return what to say about it.

        Raises:
            CheckpointError: There are checkpoints, but none that is complete or fits.
        """
        path, problems = find_newest_complete(self.run_dir, self.world)
        notes = [f"skipped a damaged checkpoint: {problem}" for problem in problems]
        if path is not None:
            self._restore(path)
        notes += self.parts.snapshots.set_aside(self.images_seen)
        if path is None:
            return notes
        return [*notes, f"resumed from {path} at {self.images_seen:,} images"]

    def _restore(self, path: Path) -> None:
        reader = CheckpointReader(path)
        state, sampled = reader.state, self.parts.objective.sampled_network
        check_same_data(path, state.data_digest, self._data)
        self._check_clock(path, state)
        if not state.updates.keys() == state.loss_scales.keys() == self.engines.keys():
            raise CheckpointError(
                f"{path} is of the networks {', '.join(state.updates)}, this run trains"
                f" {', '.join(self.engines)}: it is another run's, or damaged; remove it"
            )
        check_length(self.intervals.total, self.batches.total, state.images_seen)
        for name, engine in self.engines.items():
            reader.restore(name, engine.begin_restore(state.updates[name]))
            reader.restore_parameters(name, engine.whole_parameters())
            engine.end_restore()
            engine.loss_scale.load_state(state.loss_scales[name])
        for name, ema in self.parts.emas.items():
            reader.restore(average_group(sampled, name), ema.shards())
        self.images_seen, self.step = state.images_seen, state.step
        self.data_offset = state.data_offset
        self.parts.checkpoints.saved = self.images_seen

    def _check_clock(self, path: Path, state: TrainState) -> None:
        """Raise CheckpointError unless the clock is one that steps of this batch lead to."""
        images = self.batches.total
        if state.images_seen != state.step * images or state.data_offset % images:
            raise CheckpointError(
                f"{path} is of step {state.step} at {state.images_seen} images, {state.data_offset}"
                f" skipped, which steps of global_batch_size={images} do not reach: it is damaged,"
                " or another run's; remove it to resume from the one before"
            )

    def _roll_back(self, problem: str) -> None:
        """Return to the last complete checkpoint and skip the images that led to the problem.

        Raises:
            DivergedError: The policy does not roll back, has done so too often, or cannot.
        """
        policy, diverged = self._divergence, self.images_seen
        with self.parts.watchdog.storage("the checkpoints of a roll-back"):
            self.parts.checkpoints.finish()
            path, _ = find_newest_complete(self.run_dir, self.world)
        if policy.action != "roll_back" or self._roll_backs >= policy.max_roll_backs or not path:
            raise DivergedError(
                f"training diverged by {diverged:,} images: {problem}."
                f" The checkpoints before that are kept in {self.run_dir}"
            )
        skipped = self.data_offset
        self._restore(path)
        self._refresh_average()
        self._begin_checks()
        self._roll_backs += 1
        self.data_offset = skipped + diverged - self.images_seen
        self.parts.reporter.rewind(
            self.images_seen,
            f"rolled back from {diverged:,} to {self.images_seen:,} images and skipped the images"
            f" between: {problem}",
        )
        for note in self.parts.snapshots.set_aside(self.images_seen):
            self.parts.reporter.say(note)
