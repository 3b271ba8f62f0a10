"""Faults, each injected on purpose: what is kept and said, and that the run resumes exactly."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pytest
import torch

from dist_train.checkpoint.format import committed
from dist_train.config import (
    AdamConfig,
    CheckpointConfig,
    DivergencePolicy,
    LoggingConfig,
    RunConfig,
    WarmupSchedule,
)
from dist_train.engine.loss_scaling import GROWTH_INTERVAL, INITIAL_SCALE, LossScale
from dist_train.monitoring.divergence import DivergenceCheck
from dist_train.runtime.events import read_events
from dist_train.snapshots import set_aside
from models.command_line import EXIT_LOST, EXIT_STORAGE
from models.config_io import ConfigError, override
from tests.dist_train.test_trainer import HALF, WHOLE, whole_tensors
from tests.paths import ROOT
from tests.ranks import run_ranks
from tests.tiny import BATCH, tiny_edm, tiny_wavediff


def _config(
    *overrides: str, total: int = WHOLE, action: Literal["stop", "skip", "roll_back"] = "stop"
) -> RunConfig:
    settings = [f"total_images={total}", f"divergence.action={action}"]
    return override(tiny_edm(), [*settings, *overrides])


def _fit(
    root: Path, config: RunConfig, poisoned: tuple[int, ...] = (), poison: float = torch.nan
) -> Any:
    """Train; samples at the poisoned positions give losses that are multiplied by the poison."""
    from dist_train.build import build_trainer
    from dist_train.runtime.world import init_world

    root.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(config, root, init_world())
    healthy = trainer.losses["denoiser"]

    def loss_fn(networks: Any, example: Any, step: int) -> Any:
        loss, metrics = healthy(networks, example, step)
        factor = poison if set(example.positions) & set(poisoned) else 1.0
        return loss * factor, {name: value * factor for name, value in metrics.items()}

    trainer.losses["denoiser"] = loss_fn
    trainer.fit()
    return trainer


def _same(ours: Path, theirs: Path) -> None:
    left, right = whole_tensors(ours), whole_tensors(theirs)
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert torch.equal(values, right[name]), name
        assert values.isfinite().all()


# Divergence.


SIGNS = {
    "nan": "1 updates of the denoiser had gradients that are",
    "1e6": "an untrained denoiser has about 1.*lower optim.denoiser.lr",
}
"""What is said of losses that are not numbers, and of losses that explode."""


def _check_divergence(root: Path, zero_stage: Literal[0, 1], poison: str) -> None:
    from dist_train.monitoring.divergence import DivergedError

    def fit(name: str, bad: tuple[int, ...], total: int = WHOLE, **policy: Any) -> Any:
        config = _config(f"sharding.zero_stage={zero_stage}", total=total, **policy)
        return _fit(root / name, config, bad, float(poison))

    bad = (1 * BATCH + 3, 4 * BATCH + 6)  # one sample of the second step, one of the fifth
    with pytest.raises(DivergedError, match=SIGNS[poison]):
        fit("stop", bad[1:])
    assert [p.name for p in committed(root / "stop")] == [f"{HALF:012d}"]

    whole = fit("skip", bad, action="skip")
    assert whole.engines["denoiser"].loss_scale.skipped == 2
    assert whole.engines["denoiser"].updates == WHOLE // BATCH - 2
    for total in (HALF, WHOLE):
        fit("skip_resumed", bad, total, action="skip")
    _same(root / "skip", root / "skip_resumed")

    whole = fit("back", bad[1:], action="roll_back")
    assert whole.data_offset == 2 * BATCH  # from the checkpoint to where it was noticed
    assert whole.engines["denoiser"].loss_scale.skipped == 0
    for total in (5 * BATCH, WHOLE):  # diverges, goes back and is interrupted; resumes
        fit("back_resumed", bad[1:], total, action="roll_back")
    _same(root / "back", root / "back_resumed")
    lines = (root / "back" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["images_seen"] for line in lines] == list(
        range(BATCH, WHOLE + 1, BATCH)
    )
    everything = tuple(range(4 * BATCH, 1000))
    with pytest.raises(DivergedError, match="diverged by"):  # in vain: it stops after three times
        fit("hopeless", everything, action="roll_back")


@pytest.mark.distributed
@pytest.mark.parametrize("poison", SIGNS)
@pytest.mark.parametrize("zero_stage", [0, 1])
def test_non_finite_updates_stop_are_skipped_or_rolled_back(
    tmp_path: Path, zero_stage: int, poison: str
) -> None:
    run_ranks(2, _check_divergence, tmp_path, zero_stage, poison)
    started, rolled_back, ended = read_events(tmp_path / "back")
    assert (started.event, started.images_seen, started.ranks) == ("start", 0, 2)
    assert (rolled_back.event, rolled_back.images_seen) == ("roll_back", HALF)
    assert f"rolled back from {5 * BATCH} to {HALF} images" in rolled_back.why
    assert (ended.event, ended.images_seen) == ("end", WHOLE)


EVERY_STEP = f"checkpoint.snapshot_every_images={BATCH}"
SHORT = 'ema.short={"type": "PowerEma", "relative_width": 0.05}'


def _snapshots(run_dir: Path, average: str = "snapshots") -> dict[int, str]:
    """Return the digests of the weights of a run's snapshots by images seen."""
    files = sorted(run_dir.glob(f"{average}/[0-9]*/snapshot.json"))
    return {int(f.parent.name): json.loads(f.read_text())["weights_sha256"] for f in files}


def _check_abandoned(root: Path) -> None:
    config = _config(EVERY_STEP, SHORT, "logging.grid_seeds=1", action="roll_back")
    _fit(root / "back", config, (4 * BATCH + 6,))  # the fifth step; the checkpoint is of the third
    everything = list(range(0, WHOLE + 1, BATCH))
    abandoned = root / "back/abandoned/1"
    for average in ("snapshots", "ema/short"):
        kept, moved = _snapshots(root / "back", average), _snapshots(abandoned, average)
        assert [*kept] == everything
        assert [*moved] == [4 * BATCH]
        assert kept[4 * BATCH] != moved[4 * BATCH]  # after other images
    assert [p.name for p in (abandoned / "grids").iterdir()] == [f"{4 * BATCH:012d}.png"]
    assert [path.name for path in (root / "back/abandoned").iterdir()] == ["1"]


def _check_older_checkpoint(root: Path) -> None:
    config = _config(EVERY_STEP, SHORT)
    _fit(root / "run", config)
    before = {name: _snapshots(root / "run", name) for name in ("snapshots", "ema/short")}
    world = torch.distributed
    if world.get_rank() == 0:  # as if it were damaged
        assert committed(root / "run")[-1].name == f"{WHOLE:012d}"
        shutil.rmtree(committed(root / "run")[-1])
        (root / "run/snapshots/000000099999-notes").mkdir()
    world.barrier()
    _fit(root / "run", config)
    for name, digests in before.items():  # the same ranks take the same way again, bit for bit
        assert _snapshots(root / "run", name) == digests
        later = {images: digest for images, digest in digests.items() if images > HALF}
        assert _snapshots(root / "run/abandoned/1", name) == later
    assert (root / "run/snapshots/000000099999-notes").is_dir()


def test_only_what_a_run_wrote_at_later_times_is_moved_aside(tmp_path: Path) -> None:
    later = [
        "snapshots/000000000032/snapshot.json", "ema/long/000000000032/snapshot.json",
        "ema/posthoc_power_0.07/000000000032/snapshot.json", "grids/000000000032.png",
        "evaluation/000000000032/fid.json", "evaluation/000000000032-fid.json",
    ]  # fmt: skip
    stay = [name.replace("32", "24") for name in later] + [
        "evaluation/plan.json", "snapshots/000000000032.notes/notes.txt", "grids/thesis.png",
        "checkpoints/000000000032/checkpoint.json", "abandoned/7/notes.txt", "ema/32/notes.txt",
    ]  # fmt: skip
    for name in later + stay:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    note = set_aside(tmp_path, 24)
    assert note is not None
    assert f"moved 6 snapshots, grids and results after 24 images to {tmp_path}/abandoned/8" in note
    for name in later:
        assert not (tmp_path / name).exists()
        assert (tmp_path / "abandoned/8" / name).read_text() == name
    assert all((tmp_path / name).read_text() == name for name in stay)
    assert set_aside(tmp_path, 24) is None


@pytest.mark.distributed
@pytest.mark.parametrize("check", [_check_abandoned, _check_older_checkpoint])
def test_snapshots_of_an_abandoned_branch_are_moved_aside(
    tmp_path: Path, check: Callable[[Path], None]
) -> None:
    run_ranks(2, check, tmp_path)


def _check_collapsed_pair(root: Path) -> None:
    from dist_train.build import build_trainer
    from dist_train.monitoring.divergence import DivergedError
    from dist_train.runtime.world import init_world

    config = tiny_wavediff()
    soaring = AdamConfig(lr=1.0, schedule=WarmupSchedule(images=50 * BATCH))
    config = replace(
        config,
        optim=dict(config.optim) | {"discriminator": soaring},
        total_images=40 * BATCH,
        checkpoint=CheckpointConfig(every_images=BATCH, snapshot_every_images=6 * BATCH),
    )
    root.mkdir()
    with pytest.raises(DivergedError, match=r"raise objective\.r1_gamma") as stop:
        build_trainer(config, root, init_world()).fit()
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    assert f"diverged by {lines[-1]['images_seen']} images" in str(stop.value)
    newest = committed(root)[-1].name
    assert newest == f"{lines[-2]['images_seen']:012d}"  # of the last healthy interval


@pytest.mark.distributed
def test_a_collapsed_pair_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path,
) -> None:
    run_ranks(1, _check_collapsed_pair, tmp_path / "run")


def test_judge_sees_explosions_and_falling_scales() -> None:
    policy = DivergencePolicy(explosion=10.0)
    scale = LossScale(dynamic=False)
    check = DivergenceCheck(policy, lambda metrics: None, {"net": scale})
    assert check.find_problem({"net/loss": 0.1}) is None
    assert check.find_problem({"net/loss": 9.0}) is None  # small losses may vary
    assert "rose from 9 to 91" in str(check.find_problem({"net/loss": 91.0}))
    assert "is inf" in str(check.find_problem({"net/loss": torch.inf}))
    falling = LossScale(dynamic=True)
    check = DivergenceCheck(policy, lambda metrics: None, {"net": falling})
    for _ in range(16):
        falling.update_scale(True)
    assert check.find_problem({"net/loss": 1.0}) is None
    falling.update_scale(True)
    assert "loss scale of the net fell to 0.5" in str(check.find_problem({"net/loss": 1.0}))


def test_loss_scale_halves_doubles_and_survives_a_checkpoint() -> None:
    scale = LossScale(dynamic=True)
    scale.update_scale(True)
    assert (scale.cur_scale, scale.skipped) == (INITIAL_SCALE / 2, 1)
    for _ in range(GROWTH_INTERVAL):
        scale.update_scale(False)
    assert scale.cur_scale == INITIAL_SCALE
    other = LossScale(dynamic=True)
    other.load_state(scale.state())
    assert other.state() == scale.state()


# Storage.


@contextlib.contextmanager
def _full_disk() -> Iterator[None]:
    """Let no file of this process grow beyond 20 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def drop_override() -> Callable[[], None]:
    """Bind this thread, and those it starts, to the modes of files, also as root.

    Returns:
        What gives the right to ignore them back.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    effective = data[0]

    def set_effective(rights: int) -> None:
        data[0] = rights
        assert libc.capset(header, data) == 0

    set_effective(effective & ~0b110)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    return lambda: set_effective(effective)


@contextlib.contextmanager
def _read_only(directory: Path) -> Iterator[None]:
    """Take away the right to write a directory, from root as well."""
    restore = drop_override()
    mode = directory.stat().st_mode
    directory.chmod(0o555)
    try:
        yield
    finally:
        directory.chmod(mode)
        restore()


def _check_storage(root: Path) -> None:
    from dist_train.checkpoint import writer
    from dist_train.checkpoint.format import CheckpointError, StorageError
    from dist_train.runtime.world import init_world

    world = init_world()
    for name in ("full", "read_only"):
        _fit(root / name, _config(total=HALF))
        directory = root / name / "checkpoints"
        fault = _full_disk() if name == "full" else _read_only(directory)
        error, said = {
            "full": (StorageError, r"in 5 attempts: rank 1: .*File too large; .* is kept: make"),
            "read_only": (CheckpointError, r"rank \d cannot write .*checkpoints: "),
        }[name]
        with (
            fault if name == "read_only" or world.rank == 1 else contextlib.nullcontext(),
            mock.patch.object(writer, "LAST_PAUSES", (0.0,) * 4),
            pytest.raises(error, match=said),
        ):
            _fit(root / name, _config(total=WHOLE))
        world.barrier()
        assert sorted(path.name for path in directory.iterdir()) == [f"{HALF:012d}"]
        world.barrier()
        _fit(root / name, _config(total=WHOLE))
    _fit(root / "undisturbed", _config())


@pytest.mark.distributed
def test_full_disk_and_read_only_directory_lose_nothing(tmp_path: Path) -> None:
    run_ranks(2, _check_storage, tmp_path)
    for name in ("full", "read_only"):
        _same(tmp_path / name, tmp_path / "undisturbed")


def _check_passing_trouble(root: Path, function: str, number: int) -> None:
    """Train while every write of this process' files fails from the first step to the third."""
    from dist_train.checkpoint import writer
    from dist_train.runtime.world import init_world
    from dist_train.trainer import Trainer

    broken, original = False, getattr(os, function)
    begin = Trainer._begin_checkpoint

    def fail(*arguments: Any) -> Any:
        if broken:
            raise OSError(number, os.strerror(number))
        return original(*arguments)

    def begin_checkpoint(trainer: Trainer) -> None:
        nonlocal broken
        broken = trainer.step == 1 and trainer.world.rank == 1
        begin(trainer)

    with (
        mock.patch.object(writer, "FIRST_PAUSE", 0.0),
        mock.patch.object(Trainer, "_begin_checkpoint", begin_checkpoint),
        mock.patch(f"os.{function}", fail),
    ):
        trainer = _fit(root / "disturbed", _config(f"checkpoint.every_images={BATCH}"))
    assert trainer.parts.checkpoints.saved == WHOLE
    assert f"{BATCH:012d}" not in [path.name for path in committed(root / "disturbed")]
    init_world().barrier()
    _fit(root / "undisturbed", _config())


@pytest.mark.distributed
@pytest.mark.parametrize(("function", "number"), [("write", errno.ENOSPC), ("fsync", errno.ESTALE)])
def test_storage_that_fails_for_a_while_changes_nothing(
    tmp_path: Path, function: str, number: int
) -> None:
    run_ranks(2, _check_passing_trouble, tmp_path, function, number)
    _same(tmp_path / "disturbed", tmp_path / "undisturbed")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": lambda directory: _rewrite(
        directory / "rank_00001.safetensors", _with_a_flipped_byte
    ),
    "truncated": lambda directory: _rewrite(
        directory / "rank_00000.safetensors", lambda data: data[:-9]
    ),
    "unmarked": lambda directory: (directory / "checkpoint.json").unlink(),
    "emptied": lambda directory: [file.unlink() for file in directory.iterdir()],  # type: ignore
}
"""What may happen to a checkpoint."""


def _rewrite(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


def _with_a_flipped_byte(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


def _check_damage(root: Path) -> None:
    from dist_train.checkpoint.format import CheckpointError
    from dist_train.runtime.world import init_world

    world = init_world()
    undisturbed = _fit(root / "undisturbed", _config(f"checkpoint.every_images={2 * BATCH}"))
    for name, damage in DAMAGES.items():
        _fit(root / name, _config(f"checkpoint.every_images={2 * BATCH}", total=5 * BATCH))
        newest, older = reversed(committed(root / name))
        world.barrier()
        if world.rank == 0:
            damage(newest)
        world.barrier()
        trainer = _fit(root / name, _config(f"checkpoint.every_images={2 * BATCH}"))
        assert "skipped a damaged checkpoint" in trainer._notes[0]
        assert f"resumed from {older}" in trainer._notes[-1]
        assert trainer.step == undisturbed.step
        _same(root / name, root / "undisturbed")
        world.barrier()
        if world.rank == 0:
            for directory in committed(root / name):
                DAMAGES["truncated"](directory)
        world.barrier()
        with pytest.raises(CheckpointError, match="is complete"):  # and no fresh start
            _fit(root / name, _config())
        world.barrier()


@pytest.mark.distributed
def test_damaged_checkpoints_are_skipped_and_the_run_is_the_same(tmp_path: Path) -> None:
    run_ranks(2, _check_damage, tmp_path)


# Ranks that hang or disappear.

STOPPABLE = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from dist_train.train import train
from dist_train.trainer import Trainer
from tests.dist_train.test_faults import _config
"""

HANGING = """
def sleep_without_end(self, original=Trainer._train_step):
    def step(trainer, examples):
        while trainer.step == 4 and trainer.world.rank == 1:
            time.sleep(1)
        original(trainer, examples)
    return step

Trainer._train_step = sleep_without_end(None)
sys.exit(train(_config("divergence.hang_timeout=6"), Path(sys.argv[1])))
"""

READ_ONLY = """
import errno
from dist_train.monitoring.metrics_log import AppendedLines, MetricsLog

failing = False
def write(self, images_seen, *arguments, original=MetricsLog.write):
    global failing
    failing = images_seen in (24, 32)
    original(self, images_seen, *arguments)

def append(self, original=AppendedLines._write):
    if failing:
        raise OSError(errno.EROFS, "Read-only file system")
    original(self)

MetricsLog.write, AppendedLines._write = write, append
sys.exit(train(_config(), Path(sys.argv[1])))
"""

UNWRITABLE = """
from tests.dist_train.test_faults import drop_override
from dist_train.checkpoint import writer

def make_unwritable(original=Trainer._train_step):
    def step(trainer, examples):
        if trainer.step == 4 and trainer.world.rank == 0:
            for path in (trainer.run_dir, *trainer.run_dir.rglob("*")):
                path.chmod(0o555 if path.is_dir() else 0o444)
        trainer.world.barrier()
        original(trainer, examples)
    return step

drop_override()
writer.FIRST_PAUSE = 0.0
Trainer._train_step = make_unwritable()
every_step = ["checkpoint.every_images=8", "logging.every_images=8", "checkpoint.max_failures=2"]
sys.exit(train(_config(*every_step, total=80), Path(sys.argv[1])))
"""

STOPPED = """
def tell_and_wait(original=Trainer._train_step):
    def step(trainer, examples):
        if trainer.step == 4:
            trainer.world.barrier()
            (trainer.run_dir / f"rank{trainer.world.rank}").touch()
            time.sleep(2)  # to be stopped in
        original(trainer, examples)
    return step

Trainer._train_step = tell_and_wait()
sys.exit(train(_config("divergence.hang_timeout=6"), Path(sys.argv[1])))
"""


def _start_ranks(script: str, run_dir: Path) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, str(run_dir)],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            text=True,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]


def _resume(root: Path) -> None:
    _fit(root / "disturbed", _config())
    _fit(root / "undisturbed", _config())


@pytest.mark.distributed
def test_a_hang_ends_all_ranks_with_their_stacks(tmp_path: Path) -> None:
    processes = _start_ranks(STOPPABLE + HANGING, tmp_path / "disturbed")
    errors = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [EXIT_LOST, EXIT_LOST], errors
    stacks = [tmp_path / "disturbed" / "hangs" / f"rank_0000{rank}.txt" for rank in range(2)]
    assert "step 4" in stacks[0].read_text()
    assert "in step" in stacks[1].read_text()  # the function that sleeps
    assert "rank 1 hangs: no progress for 6 s in" in errors[1]
    run_ranks(2, _resume, tmp_path)
    _same(tmp_path / "disturbed", tmp_path / "undisturbed")


@pytest.mark.distributed
def test_metrics_that_cannot_be_written_for_a_while_are_written_later(tmp_path: Path) -> None:
    run_dir = tmp_path / "disturbed"
    processes = _start_ranks(STOPPABLE + READ_ONLY, run_dir)
    errors = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert f"{run_dir}/metrics.jsonl: Read-only file system; 2 lines wait" in errors[0]
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["images_seen"] for line in lines] == list(
        range(BATCH, WHOLE + 1, BATCH)
    )


@pytest.mark.distributed
def test_a_directory_that_stays_unwritable_ends_all_ranks_and_they_resume(tmp_path: Path) -> None:
    run_dir = tmp_path / "disturbed"
    processes = _start_ranks(STOPPABLE + UNWRITABLE, run_dir)
    errors = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [EXIT_STORAGE] * 2, errors
    last = "no checkpoint could be written 2 times in a row: "
    said = [line for line in "".join(errors).splitlines() if last in line]
    assert len(said) == 1, errors
    assert f"Permission denied: '{run_dir}/checkpoints/" in said[0]
    assert "the last complete one is kept" in said[0]
    assert f"{run_dir}/metrics.jsonl: Permission denied" in errors[0]
    kept = committed(run_dir)[-1].name
    assert int(kept) in (3 * BATCH, 4 * BATCH)  # the commit of the last may have been under way
    for path in (run_dir, *run_dir.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    run_ranks(2, _resume, tmp_path)
    _same(run_dir, tmp_path / "undisturbed")


@pytest.mark.distributed
@pytest.mark.parametrize("stopped", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_stopped_process_is_named_and_the_run_resumes(tmp_path: Path, stopped: int) -> None:
    """SIGSTOP, as a dying node does it: the process is there, and answers nothing."""
    run_dir = tmp_path / "disturbed"
    processes = _start_ranks(STOPPABLE + STOPPED, run_dir)
    deadline = time.monotonic() + 120
    while not (run_dir / f"rank{stopped}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes[stopped].send_signal(signal.SIGSTOP)
    other = 1 - stopped
    errors = processes[other].communicate(timeout=60)[1]
    assert processes[other].returncode == EXIT_LOST
    assert f"rank {other} hangs: no progress for 6 s in step 4" in errors
    assert f"rank {other} waits for rank {stopped} (last seen in" in errors
    assert "step 4" in (run_dir / "hangs" / f"rank_0000{other}.txt").read_text()
    processes[stopped].send_signal(signal.SIGCONT)  # or its node kills it
    processes[stopped].communicate(timeout=60)
    assert processes[stopped].returncode == EXIT_LOST
    assert [path.name for path in committed(run_dir)] == [f"{HALF:012d}"]
    run_ranks(2, _resume, tmp_path)
    _same(run_dir, tmp_path / "undisturbed")


# The surroundings.


def _check_surroundings(root: Path) -> None:
    from dist_train.monitoring import loggers
    from dist_train.runtime.world import init_world

    _fit(root / "undisturbed", _config())
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    with (
        mock.patch.dict(os.environ, {**nowhere, "WANDB_MODE": "online", "WANDB_SILENT": "true"}),
        mock.patch.object(loggers, "WANDB_TIMEOUT", 2.0),
    ):
        _fit(root / "unreachable", _config("logging.wandb_project=x"))
    clock = time.time
    for total, skew in ((HALF, 1e6), (WHOLE, -1e6)):  # one node's clock is days off, then the other
        off = skew if init_world().rank else 0.0
        with mock.patch("time.time", lambda off=off: clock() + off):
            _fit(root / "skewed", _config(total=total))


@pytest.mark.distributed
def test_wandb_out_of_reach_and_skewed_clocks_change_nothing(tmp_path: Path) -> None:
    run_ranks(2, _check_surroundings, tmp_path)
    for name in ("unreachable", "skewed"):
        _same(tmp_path / name, tmp_path / "undisturbed")
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == WHOLE // BATCH
    newest = tmp_path / "skewed" / "checkpoints" / f"{WHOLE:012d}"
    assert committed(tmp_path / "skewed")[-1] == newest


def test_wandb_out_of_reach_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dist_train.monitoring import loggers

    pytest.importorskip("wandb").teardown()  # an earlier test's service keeps its settings
    monkeypatch.setattr(loggers, "WANDB_TIMEOUT", 2.0)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_SILENT", "true")
    began = time.monotonic()
    assert loggers.start_loggers(LoggingConfig(wandb_project="x"), {}, tmp_path) == []
    assert "metrics go to metrics.jsonl only" in capsys.readouterr().err
    assert time.monotonic() - began < 60


def test_nothing_depends_on_the_clock_of_the_wall() -> None:
    """Durations are monotonic and order is by images seen: skewed clocks cannot matter."""
    forbidden = {"time.time", "datetime.now", "datetime.utcnow", "time.time_ns"}
    for path in sorted((ROOT / "dist_train").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in forbidden, path
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"st_mtime", "st_ctime"}, path


def test_a_run_directory_of_a_newer_format_is_rejected(tmp_path: Path) -> None:
    from dist_train.runtime.run_dir import settle_config

    settle_config(tmp_path, tiny_edm())
    (tmp_path / "format.json").write_text('{"format_version": 3}')
    with pytest.raises(ConfigError, match=r"format\.json has format 3, this relaywave reads 2"):
        settle_config(tmp_path, tiny_edm())


def test_stale_locks_and_file_systems_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dist_train.runtime import run_dir

    (tmp_path / "lock").write_text('{"host": "gone", "pid": 1, "since": "long ago"}')
    lock = run_dir.RunLock(tmp_path, patience=0.0)
    assert str(os.getpid()) in str(run_dir.RunLock.owner(tmp_path))
    lock.release()
    assert run_dir.RunLock.owner(tmp_path) is None

    def no_locks(file: Any, kind: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(run_dir.fcntl, "flock", no_locks)
    run_dir.RunLock(tmp_path, patience=0.0).release()
    assert "the file system has no locks; start one run only" in capsys.readouterr().err


def test_checkpoints_are_kept_by_rules() -> None:
    from dist_train.checkpoint.writer import expendable

    metrics = {10: 3.0, 20: 1.0, 30: None, 40: 2.0, 50: 1.0, 60: float("nan"), 70: 5.0}
    assert expendable(metrics, CheckpointConfig(keep_last=2)) == [10, 20, 30, 40, 50]
    every = CheckpointConfig(keep_last=1, keep_every_images=25)
    assert expendable(metrics, every) == [10, 20, 40, 60]
    best = CheckpointConfig(keep_last=1, keep_best="net/loss")
    assert expendable(metrics, best) == [10, 20, 30, 40, 60]
    assert expendable(metrics, CheckpointConfig(keep_last=9)) == []
