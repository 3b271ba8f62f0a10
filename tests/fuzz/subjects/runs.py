"""Runs: settings, format, data, metrics, checkpoints, and what Slurm's jobs and schedules note."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from data_pipelines.packed.manifest import DatasetInfo
from dist_train.__main__ import main as train
from dist_train.checkpoint.format import CheckpointError, CheckpointReader, find_newest_complete
from dist_train.runtime.metrics_file import read_metrics
from dist_train.runtime.run_data import check_data, record_data
from dist_train.runtime.run_dir import read_run_config
from dist_train.runtime.world import World
from models.config_io import to_json
from tests.dist_train.checkpoint.test_format import write
from tests.fuzz.subject import Difference, Result, Subject, as_a_command, digest, run

ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
IMAGES = 24
SETTINGS = (
    "quickstart_edm16", "data.backend=synthetic", "objective.unet.model_channels=4",
    "objective.unet.label_dim=4", "logging.wandb_project=null", "global_batch_size=8",
    "logging.every_images=8", "logging.grid_seeds=0", "checkpoint.every_images=8",
    f"total_images={IMAGES}", f"checkpoint.snapshot_every_images={IMAGES}",
)  # fmt: skip
TENSORS = ("net/weight/w", "net.ema/weight/w")


def make_run(path: Path, number: int) -> None:
    """Train a run of three steps; the other one has another seed."""
    run(train, *SETTINGS, f"seed={number}", "--run-dir", path)
    shutil.rmtree(path / "slurm", ignore_errors=True)


def status(tree: Path) -> Result:
    """Return what is said of a run, and the settings that a job would train with."""
    with as_a_command():
        config = to_json(read_run_config(tree))
    run(train, "status", tree)
    lines = {f"images {line['images_seen']}": digest(line) for line in read_metrics(tree)}
    return {"config": digest(config), **lines}


def lines_may_differ(difference: Difference) -> bool:
    """Lines of a log have no checksum: one that parses is what it is."""
    return difference.mutation.file == "metrics.jsonl" and "config" not in difference.changed


def make_checkpoints(path: Path, number: int) -> None:
    path.mkdir()
    write(path, 10 + number, 20 + number)


def resume(tree: Path) -> Result:
    """Return which checkpoint is used, and what of each is loaded."""
    with as_a_command(CheckpointError):
        used, problems = find_newest_complete(tree, ALONE)
        print(*problems, sep="\n")
        assert used is not None
        reader = CheckpointReader(used)
        loaded = {f"{used.name}/state": digest(reader.state)}
        for tensor in TENSORS:
            values = torch.full((4,), float("nan"))
            reader.read(tensor, 0, values)
            loaded[f"{used.name}/{tensor}"] = digest(values.tolist())
    return {"used": used.name, **loaded}


def older_one_is_used(difference: Difference) -> bool:
    """The newest is passed over, and said; the older one is what it was when it was written."""
    used, newest = difference.after["used"], difference.before["used"]
    value = float(used)
    tensors = {difference.after[f"{used}/{tensor}"] for tensor in TENSORS}
    return used < newest and newest in difference.said and tensors == {digest([value] * 4)}


def make_data(path: Path, number: int) -> None:
    path.mkdir()
    record_data(path, _info(number))


def _info(number: int) -> DatasetInfo:
    return DatasetInfo(
        num_images=60 + number, resolution=16, class_names=("cat", "dog"),
        digest=digest(number) * 4, order=digest("order") * 4,
    )  # fmt: skip


def same_data(tree: Path) -> Result:
    with as_a_command(RuntimeError):
        is_recorded = check_data(tree, _info(0))
    return {"recorded": str(is_recorded)}


def is_written_again(difference: Difference) -> bool:
    """A run of an older version has no record of its data: it is made at the next start."""
    return difference.mutation.what in ("deleted", "a link to missing")


RUN_FILES = ("config.json", "format.json", "metrics.jsonl")
SUBJECTS = (
    Subject("run.settings", make_run, status, RUN_FILES, lines_may_differ),
    Subject("run.checkpoints", make_checkpoints, resume, ("checkpoints/**/*",), older_one_is_used),
    Subject("run.data", make_data, same_data, ("data.json",), is_written_again),
)
