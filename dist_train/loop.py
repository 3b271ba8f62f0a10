"""The training loop, one for every objective: losses keyed by the network that they update.

Its clock is `images_seen`. Everything random in a step is a function of (seed, position in the
global sample order), and everything scheduled is a function of images seen, so the state of a run
is its tensors and one integer: any number of ranks, any ZeRO stage and any split into micro-batches
continues it with the same global batches and the same noise.
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from data_pipelines.pipeline import ImagePipeline, Share, build_pipeline
from dist_train.checkpoint import CheckpointReader, CheckpointWriter, TrainState, find_newest_whole
from dist_train.config import RunConfig
from dist_train.distributed import World
from dist_train.ema import ShardedEma
from dist_train.engines import Engine, updating_only
from dist_train.metrics import MetricAverages, MetricsLog
from dist_train.preemption import StopRequest
from models.config_io import ConfigError, to_json
from models.objective import Example, Objective
from models.snapshot import write_snapshot
from models.streams import stream_seed


class Outcome(enum.Enum):
    """How `Trainer.fit` ended."""

    FINISHED = "finished"
    PREEMPTED = "preempted"


class DivergedError(RuntimeError):
    """A loss is not finite or the networks are sick; the last checkpoint before it is kept."""


class Trainer:
    """A run: networks, engines, EMA, data, and the folder that it lives in.

    Args:
        config: The resolved configuration.
        run_dir: The run folder; its newest whole checkpoint is resumed.
        world: The process group.
        on_snapshot: Called on rank 0 with the path of every snapshot that was written.

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
    ) -> None:
        self.config, self.run_dir, self.world = config, run_dir, world
        self.objective = config.objective.build()
        self.micro_batch_size, self.accumulation_steps = plan_batches(
            config, self.objective.batch_multiple, world.size
        )
        self.pipeline = _build_pipeline(config, self.objective, world, self.micro_batch_size)
        self.networks = _build_networks(config, self.objective, world)
        self.engines = {
            name: Engine(
                network,
                config.optim[name],
                world=world,
                zero_stage=config.zero_stage,
                micro_batch_size=self.micro_batch_size,
                accumulation_steps=self.accumulation_steps,
            )
            for name, network in self.networks.items()
        }
        self.ema = ShardedEma(self.engines[self.objective.sampled_network].owned(), config.ema)
        self.images_seen = self.step = 0
        self._on_snapshot = on_snapshot
        self._losses = self.objective.losses()
        self._called = _compiled(config, self.objective, self.networks)
        self._averages = MetricAverages()
        self._writer = CheckpointWriter(run_dir, world, config.keep_checkpoints)
        self._saved: int | None = None
        self._notes = self._resume()
        self._log: MetricsLog | None = None

    def fit(self) -> Outcome:
        """Train to the end, or until a signal asks to stop; the state is saved in both cases.

        Raises:
            DivergedError: A loss is not finite, or the objective's diagnosis says so.
            CheckpointError: A checkpoint could not be written.
        """
        config = self.config
        if self.world.rank == 0:
            self._open_log()
        try:
            with StopRequest() as stop:
                if self.images_seen == 0:
                    self._write_snapshot()
                examples = self._examples()
                self._start_interval()
                while self.images_seen < config.total_images:
                    self._train_step(examples)
                    saving = self._crossed(config.checkpoint_images)
                    if saving or self._crossed(config.log_images):
                        self._report()  # before saving: what diverged is never saved
                    if self._crossed(config.snapshot_images):
                        self._write_snapshot()
                    if saving:
                        self._begin_checkpoint()
                    if self._agree_to_stop(stop):
                        self._report()
                        self._save()
                        return Outcome.PREEMPTED
                self._save()
                self._write_snapshot()
            return Outcome.FINISHED
        finally:
            if self._log is not None:
                self._log.close()
            self.pipeline.close()

    # One step.

    def _train_step(self, examples: Iterator[Example]) -> None:
        waiting = time.monotonic()
        batch = [next(examples) for _ in range(self.accumulation_steps)]
        self._data_seconds += time.monotonic() - waiting
        for name, loss_fn in self._losses.items():
            rate = self._learning_rate(name)
            with updating_only(name, self.networks):
                for example in batch:
                    loss, metrics = loss_fn(self._called, example, self.step)
                    self.engines[name].backward(loss)
                    self.engines[name].step(rate)
                    self._averages.add({f"{name}/{key}": value for key, value in metrics.items()})
        self.ema.update(self.images_seen, self.config.global_batch_size)
        self.images_seen += self.config.global_batch_size
        self.step += 1

    def _examples(self) -> Iterator[Example]:
        """Yield this rank's micro-batches in model space, endlessly, from the current position."""
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        conditional = self.config.objective.label_dim > 0
        for batch in self.pipeline.batches(self.images_seen):
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

    def _start_interval(self) -> None:
        self._interval_began, self._interval_first = time.monotonic(), self.images_seen
        self._data_seconds = 0.0

    def _report(self) -> None:
        """Reduce the interval's metrics, judge them, and log them on rank 0."""
        if self.images_seen == self._interval_first:
            return
        seconds = time.monotonic() - self._interval_began
        metrics = self._averages.reduce(self.world)
        self._judge(metrics)
        for name, engine in self.engines.items():
            metrics[f"{name}/gradient_norm"] = engine.gradient_norm()
            metrics[f"{name}/learning_rate"] = self._learning_rate(name)
        metrics["speed/images_per_second"] = (self.images_seen - self._interval_first) / seconds
        metrics["speed/data_wait_fraction"] = self._data_seconds / seconds
        if self._log is not None:
            self._log.write(self.images_seen, self.step, metrics)
        self._start_interval()

    def _judge(self, metrics: Mapping[str, float]) -> None:
        losses = {name: metrics[f"{name}/loss"] for name in self._losses}
        sick = self.objective.diagnose(metrics)
        for name, loss in losses.items():
            if not math.isfinite(loss):
                sick = f"the loss of the {name} is {loss}; lower optim.{name}.lr"
        if sick:
            raise DivergedError(
                f"training diverged between {self._interval_first:,} and {self.images_seen:,}"
                f" images: {sick}. The checkpoints before that are kept in {self.run_dir}"
            )

    def _begin_checkpoint(self) -> None:
        updates = {name: engine.updates for name, engine in self.engines.items()}
        groups = {name: engine.owned() for name, engine in self.engines.items()}
        groups[f"{self.objective.sampled_network}.ema"] = self.ema.fragments()
        self._writer.begin(TrainState(self.images_seen, self.step, updates), groups)
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
        if self._writer.pending and (failed or written == self.world.size):
            self._writer.finish()
        return bool(stops > 0)

    def _write_snapshot(self) -> None:
        """Write the EMA of the sampled network, unless an earlier process already has."""
        path = self.run_dir / "snapshots" / f"{self.images_seen:012d}"
        if self.world.broadcast_object((path / "snapshot.json").exists()):
            return
        name = self.objective.sampled_network
        weights = self.ema.gather(self.networks[name], self.world)
        if self.world.rank == 0:
            write_snapshot(
                path,
                weights,
                objective=self.config.objective,
                network=name,
                images_seen=self.images_seen,
                ema=self.config.ema.describe(),
                provenance={
                    "run": self.run_dir.name,
                    "recipe": self.config.recipe,
                    "dataset_digest": self.pipeline.info.digest,
                    "class_names": list(self.pipeline.info.class_names),
                    "torch": torch.__version__,
                },
            )
            if self._on_snapshot is not None:
                self._on_snapshot(path)
        self.world.barrier()

    def _resume(self) -> list[str]:
        """Restore the newest whole checkpoint, if any; return what should be told about it."""
        path, problems = find_newest_whole(self.run_dir, self.world)
        notes = [f"passed over a damaged checkpoint: {problem}" for problem in problems]
        if path is None:
            return notes
        reader = CheckpointReader(path)
        for name, engine in self.engines.items():
            reader.restore(name, engine.begin_restore(reader.state.updates[name]))
            reader.restore_parameters(name, self.networks[name].named_parameters())
        reader.restore(f"{self.objective.sampled_network}.ema", self.ema.fragments())
        self.images_seen, self.step = reader.state.images_seen, reader.state.step
        self._saved = self.images_seen
        return [*notes, f"resumed from {path} at {self.images_seen:,} images"]

    def _open_log(self) -> None:
        config = self.config
        self._log = MetricsLog(
            self.run_dir,
            self.images_seen,
            config.total_images,
            config.wandb_project,
            to_json(config),
        )
        for note in self._notes:
            self._log.say(note)


def plan_batches(config: RunConfig, batch_multiple: int, world_size: int) -> tuple[int, int]:
    """Return (micro_batch_size, accumulation_steps) for a number of ranks.

    Raises:
        ConfigError: The global batch cannot be split so; names sizes that can.
    """
    batch, micro = config.global_batch_size, config.micro_batch_size
    if micro is None:
        micro = max(batch // world_size, 1)
    unit = micro * world_size
    if batch % unit:
        fits = sorted({max(batch // unit, 1) * unit, -(-batch // unit) * unit})
        raise ConfigError(
            f"global_batch_size={batch} is not a multiple of micro_batch_size {micro} x"
            f" {world_size} ranks; set it to {' or '.join(map(str, fits))}"
        )
    if micro % batch_multiple:
        raise ConfigError(
            f"micro_batch_size={micro} is not a multiple of {batch_multiple}, the size of a"
            " minibatch-stddev group; change it, global_batch_size or the number of ranks"
        )
    return micro, batch // unit


def _build_pipeline(
    config: RunConfig, objective: Objective, world: World, micro_batch_size: int
) -> ImagePipeline:
    if config.data.resolution != objective.resolution:
        raise ConfigError(
            f"data.resolution={config.data.resolution}, but the objective is for"
            f" {objective.resolution}x{objective.resolution} images; set both alike"
        )
    share = Share(world.rank, world.size, micro_batch_size)
    pipeline = build_pipeline(config.data, seed=config.seed, share=share, device=world.device)
    classes, label_dim = len(pipeline.info.class_names), config.objective.label_dim
    if label_dim and not classes:
        raise ConfigError(
            f"label_dim={label_dim}, but {config.data.path} has no labels; set it to 0"
        )
    if label_dim and classes > label_dim:
        raise ConfigError(f"label_dim={label_dim}, but {config.data.path} has {classes} classes")
    return pipeline


def _build_networks(config: RunConfig, objective: Objective, world: World) -> dict[str, nn.Module]:
    torch.manual_seed(stream_seed(config.seed, "initial weights", 0))
    networks = objective.build_networks()
    if networks.keys() != config.optim.keys():
        raise ConfigError(
            f"optim has settings for {sorted(config.optim)}, the objective has the networks"
            f" {sorted(networks)}"
        )
    return {name: network.to(world.device).train() for name, network in networks.items()}


def _compiled(
    config: RunConfig, objective: Objective, networks: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """Return the networks as losses call them; R1's double backward cannot be compiled."""
    return {
        name: torch.compile(network)  # type: ignore[misc]
        if config.compile and name not in objective.second_order
        else network
        for name, network in networks.items()
    }
