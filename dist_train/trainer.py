"""The training loop, one for every objective: losses keyed by the network that they update.

Its clock is `images_seen`. Everything random in a step is a function of (seed, position in the
global sample order), and everything scheduled is a function of images seen, so the state of a run
is its tensors and a few integers: any number of ranks, any ZeRO stage and any split into
micro-batches continues it with the same global batches and the same noise.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from dist_train.build import build_data, build_engines, called_networks, plan_batches
from dist_train.checkpoint.format import CheckpointReader, Retention, TrainState, find_newest_whole
from dist_train.checkpoint.writer import CheckpointWriter
from dist_train.config import RunConfig
from dist_train.ema import ShardedEma, average_group
from dist_train.engine.engine import parameter_lists, updating_only
from dist_train.engine.fragments import Fragment
from dist_train.monitoring.divergence import DivergedError
from dist_train.monitoring.profiler import StepProfiler
from dist_train.monitoring.reporter import Reporter
from dist_train.runtime.preemption import StopRequest
from dist_train.runtime.watchdog import Watchdog, blaming_lost_ranks
from dist_train.runtime.world import World
from dist_train.snapshots import SnapshotWriter, check_previous
from models.objective import Example

__all__ = ["DivergedError", "Outcome", "Trainer", "plan_batches"]


class Outcome(enum.Enum):
    """How `Trainer.fit` ended."""

    FINISHED = "finished"
    PREEMPTED = "preempted"


class Trainer:
    """A run: networks, engines, EMA, data, and the folder that it lives in.

    Args:
        config: The resolved configuration.
        run_dir: The run folder; its newest whole checkpoint is resumed.
        world: The process group.
        on_snapshot: Called on rank 0 with the path of every snapshot that was written.
        profile_steps: Steps of this process to trace into `profile/`; 0 traces none.

    Raises:
        ConfigError: The settings do not fit each other, the data, or the number of ranks.
        CheckpointError: The folder has checkpoints, but none that is whole or fits.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        world: World,
        on_snapshot: Callable[[Path], None] | None = None,
        profile_steps: int = 0,
    ) -> None:
        self.config, self.run_dir, self.world = config, run_dir, world
        self.objective = config.objective.build()
        batches = plan_batches(config, self.objective.batch_multiple, world.size)
        self.micro_batch_size, self.accumulation_steps = batches
        self.pipeline = build_data(config, self.objective, world, self.micro_batch_size)
        check_previous(config)
        self.engines = build_engines(config, self.objective, world, batches)
        self.networks = {name: engine.network for name, engine in self.engines.items()}
        self._parameters = parameter_lists(self.networks)
        self.losses = self.objective.losses()
        owned = self.engines[self.objective.sampled_network].owned()
        self.emas = {name: ShardedEma(owned, profile) for name, profile in config.ema.items()}
        self.images_seen = self.step = self.data_offset = 0
        self._called = called_networks(config, self.objective, self.engines)
        self._reporter = Reporter(config, run_dir, world, self.objective, self.engines)
        self._writer = CheckpointWriter(
            run_dir,
            world,
            Retention(
                last=config.checkpoint.keep_last,
                every_images=config.checkpoint.keep_every_images,
                best=config.checkpoint.keep_best is not None,
            ),
        )
        self._snapshots = SnapshotWriter(config, run_dir, world, self.pipeline, on_snapshot)
        self._profiler = StepProfiler(run_dir, world, profile_steps)
        self._watchdog = Watchdog(run_dir, world, config.divergence.hang_timeout)
        self._saved: int | None = None
        self._roll_backs = 0
        self._notes = self._resume()

    def fit(self) -> Outcome:
        """Train to the end, or until a signal asks to stop; the state is saved in both cases.

        Raises:
            DivergedError: A loss is sick, and the policy says stop.
            CheckpointError: A checkpoint could not be written.
        """
        config = self.config
        try:
            self._reporter.open(self.images_seen)
            for note in self._notes:
                self._reporter.say(note)
            with StopRequest() as stop, self._watchdog, blaming_lost_ranks(self.world):
                if self.images_seen == 0:
                    self._write_snapshots()
                examples = self._examples()
                self._reporter.timer.read()  # what took time until now was no training
                while self.images_seen < config.total_images:
                    self._train_step(examples)
                    saving = self._crossed(config.checkpoint.every_images)
                    sampling = self._crossed(config.checkpoint.snapshot_every_images)
                    if saving or sampling or self._crossed(config.logging.every_images):
                        trouble = self._report()  # before saving: what diverged is never saved
                        if trouble:
                            self._roll_back(trouble)
                            examples = self._examples()
                            continue
                    if sampling:
                        self._write_snapshots()
                    if saving:
                        self._begin_checkpoint()
                    if self._agree_to_stop(stop):
                        if trouble := self._report():
                            raise DivergedError(trouble)
                        self._save()
                        return Outcome.PREEMPTED
                self._save()
                self._write_snapshots()
            return Outcome.FINISHED
        finally:
            self._profiler.close()
            self._reporter.close()
            self.pipeline.close()

    # One step.

    def _train_step(self, examples: Iterator[Example]) -> None:
        timer = self._reporter.timer
        self._watchdog.beat(f"the data for step {self.step}")
        with timer.phase("data_wait", host=True):
            batch = [next(examples) for _ in range(self.accumulation_steps)]
        self._watchdog.beat(f"step {self.step}")
        for name, loss_fn in self.losses.items():
            rate, engine = self._learning_rate(name), self.engines[name]
            with updating_only(name, self._parameters):
                for example in batch:
                    with timer.phase("forward"):
                        loss, metrics = loss_fn(self._called, example, self.step)
                    with timer.phase("backward"):
                        engine.backward(loss)
                    with timer.phase("save", host=True):
                        self._writer.wait_for_copy()
                    with timer.phase("update"):
                        engine.step(rate)
                    self._reporter.add(name, metrics)
        with timer.phase("ema"):
            for ema in self.emas.values():
                ema.update(self.images_seen, self.config.global_batch_size)
        self.images_seen += self.config.global_batch_size
        self.step += 1
        self._profiler.step()

    def _examples(self) -> Iterator[Example]:
        """Yield this rank's micro-batches in model space, endlessly, from the current position."""
        compute = self.config.compute
        layout = torch.channels_last if compute.channels_last else torch.contiguous_format
        conditional = self.config.objective.label_dim > 0
        for batch in self.pipeline.batches(self.images_seen + self.data_offset):
            x = self.objective.prepare(batch.images).contiguous(memory_format=layout)
            labels = batch.labels if conditional else None
            yield Example(x, labels, batch.positions, self.config.seed)

    def _learning_rate(self, name: str) -> float:
        adam = self.config.optim[name]
        return adam.schedule.rate(adam.lr, self.images_seen)

    def _crossed(self, interval: int) -> bool:
        """Whether the last step reached or passed a multiple of `interval`, or the end."""
        before = self.images_seen - self.config.global_batch_size
        ended = self.images_seen >= self.config.total_images
        return ended or self.images_seen // interval > before // interval

    # What leaves the loop: metrics, checkpoints, snapshots.

    def _report(self) -> str | None:
        """Report the interval that ends here, and return what is wrong, if anything."""
        rates = {name: self._learning_rate(name) for name in self.engines}
        corrupt = len(self.pipeline.corrupt)
        return self._reporter.report(self.images_seen, self.step, rates, corrupt)

    def _groups(self) -> dict[str, list[Fragment]]:
        """Return all tensors of the run's state that this rank owns, by group."""
        name = self.objective.sampled_network
        groups = {name: engine.owned() for name, engine in self.engines.items()}
        return groups | {average_group(name, k): ema.fragments() for k, ema in self.emas.items()}

    def _begin_checkpoint(self) -> None:
        state = TrainState(
            images_seen=self.images_seen,
            step=self.step,
            updates={name: engine.updates for name, engine in self.engines.items()},
            loss_scales={name: engine.loss_scale.state() for name, engine in self.engines.items()},
            data_offset=self.data_offset,
            metric=self._reporter.metric,
        )
        self._watchdog.beat("a checkpoint")
        with self._reporter.timer.phase("save", host=True):
            self._writer.begin(state, self._groups())
        self._saved = self.images_seen

    def _save(self) -> None:
        """Have the present state on disk before returning."""
        if self._saved != self.images_seen:
            self._begin_checkpoint()
        self._writer.finish()

    def _agree_to_stop(self, stop: StopRequest) -> bool:
        """Share all ranks' flags: commit a checkpoint that all have written; stop if any must."""
        flags = [stop.requested, self._writer.written, self._writer.failed]
        stops, written, failed = self.world.all_reduce_sum(torch.tensor(flags).float()).tolist()
        if failed:
            self._writer.finish()  # raises on all ranks
        if self._writer.pending and written == self.world.size:
            self._writer.commit()
        return bool(stops > 0)

    def _write_snapshots(self) -> None:
        self._watchdog.beat("a snapshot")
        shapes = self.engines[self.objective.sampled_network].shapes
        grid = self._snapshots.write(self.images_seen, self.emas, shapes)
        if grid is not None:
            self._reporter.show_grid(self.images_seen, grid)

    # Going on, and going back.

    def _resume(self) -> list[str]:
        """Restore the newest whole checkpoint, if any; return what should be told about it."""
        path, problems = find_newest_whole(self.run_dir, self.world)
        notes = [f"passed over a damaged checkpoint: {problem}" for problem in problems]
        if path is None:
            return notes
        self._restore(path)
        return [*notes, f"resumed from {path} at {self.images_seen:,} images"]

    def _restore(self, path: Path) -> None:
        reader = CheckpointReader(path)
        state, sampled = reader.state, self.objective.sampled_network
        for name, engine in self.engines.items():
            reader.restore(name, engine.begin_restore(state.updates[name]))
            reader.restore_parameters(name, engine.whole_parameters())
            engine.end_restore()
            engine.loss_scale.load_state(state.loss_scales[name])
        for name, ema in self.emas.items():
            reader.restore(average_group(sampled, name), ema.fragments())
        self.images_seen, self.step = state.images_seen, state.step
        self.data_offset = state.data_offset
        self._saved = self.images_seen

    def _roll_back(self, trouble: str) -> None:
        """Return to the last whole checkpoint and pass over the images that led to the trouble.

        Raises:
            DivergedError: The policy does not roll back, has done so too often, or cannot.
        """
        policy, diverged = self.config.divergence, self.images_seen
        self._writer.finish()
        path, _ = find_newest_whole(self.run_dir, self.world)
        if policy.action != "roll_back" or self._roll_backs >= policy.max_roll_backs or not path:
            raise DivergedError(
                f"training diverged by {diverged:,} images: {trouble}."
                f" The checkpoints before that are kept in {self.run_dir}"
            )
        passed_over = self.data_offset
        self._restore(path)
        self._roll_backs += 1
        self.data_offset = passed_over + diverged - self.images_seen
        self._reporter.rewind(
            self.images_seen,
            f"rolled back from {diverged:,} to {self.images_seen:,} images and passed over the"
            f" images between: {trouble}",
        )
