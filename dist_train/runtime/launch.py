"""Several ranks on this machine: `--ranks N` of every command that can share its work.

torchrun does the same, but returns 1 for every failure and buries the one line that says what was
wrong under pages of its own; here the ranks' exit codes (rejected, stopped, diverged) pass through.
On several machines a launcher such as Slurm sets the ranks' environment instead.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dist_train.runtime.preemption import LAUNCHED, SIGNALS
from dist_train.runtime.world import check_single_task
from models.command_line import say

PATIENCE = 60.0
"""Seconds that ranks have to end after one of them did, before they are killed."""
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""Environment variable that tells torch that no rank keeps the group's store."""
RANKS_PER_CORE = 4
"""Ranks that a machine without GPUs bears for each of its cores: each holds all of PyTorch."""
MAX_RANKS = "RELAYWAVE_MAX_RANKS"
"""Environment variable with another bound for the ranks of a machine."""


def should_launch(ranks: int | None) -> bool:
    """Whether this process is to start ranks, rather than being one of them.

    Raises:
        ValueError: The environment says that this process is a rank of another number of ranks, or
            one of several tasks, each of which would start ranks.
    """
    if ranks is None:
        return False
    if "RANK" not in os.environ:
        check_single_task()
        return True
    size = os.environ.get("WORLD_SIZE", "1")
    if size != str(ranks):
        raise ValueError(
            f"--ranks={ranks}, but by RANK={os.environ['RANK']} and WORLD_SIZE={size} in the"
            f" environment this is one of {size}; unset these variables, or leave --ranks out"
        )
    return False


def check_ranks(ranks: int, option: str = "--ranks") -> None:
    """Check how many ranks are to start on this machine: one per GPU, else a few per core.

    Raises:
        ValueError: They are none, or more than it bears.
    """
    if ranks < 1:
        raise ValueError(f"{option}={ranks} must be at least 1")
    most, reason = _most_ranks()
    if ranks > most:
        raise ValueError(
            f"{option}={ranks}: {reason}; start at most {most}, or set {MAX_RANKS}={ranks} in the"
            " environment if you mean it"
        )


def _most_ranks() -> tuple[int, str]:
    """Return how many ranks this machine bears, and why."""
    import torch

    if text := os.environ.get(MAX_RANKS):
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"the environment variable {MAX_RANKS}={text!r} is no positive number")
        return int(text), f"{MAX_RANKS} allows {text} ranks"
    if gpus := torch.cuda.device_count():
        return gpus, f"this machine has {gpus} GPU{'s' if gpus > 1 else ''}, one for each rank"
    cores = len(os.sched_getaffinity(0))
    return RANKS_PER_CORE * cores, f"this machine has no GPU, and {cores} cores for this process"


def launch_ranks(
    module: str, arguments: Sequence[str], ranks: int, stopped: int | None = None
) -> int:
    """Run `python -m module arguments` as a group of ranks; returns their exit code.

    A rank that fails takes the others with it. SIGNALS are passed on, so that the ranks can save
    and end; should this process be killed, Linux ends the ranks. The group's store lives here, so
    that the ranks can tell who has said what until the last of them ends.

    Args:
        module: The package.
        arguments: Its command line.
        ranks: How many to start.
        stopped: The exit code if a signal ends ranks that are not ready to save yet; by default
            that of a process that a signal ends.

    Raises:
        ValueError: The number of ranks is not positive, or more than this machine bears.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    check_ranks(ranks)
    received: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, _: received.append(number))
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = [sys.executable, "-m", module, *arguments]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), AGENT_STORE: "True"}
    threads = max((os.cpu_count() or 1) // ranks, 1)
    group = {"OMP_NUM_THREADS": str(threads), **child_environment(), **address, LAUNCHED: "1"}
    group |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    processes = [
        subprocess.Popen(
            command,
            env={**group, "RANK": str(r), "LOCAL_RANK": str(r)},
            process_group=0,  # a terminal's Ctrl-C reaches the ranks through this process only
        )
        for r in range(ranks)
    ]
    code = _wait(processes, received)
    if code in _codes_of(received):
        code = 128 + received[0] if stopped is None else stopped
    if received and code in (stopped, 128 + received[0]):
        say("stopped when asked to: run the same command again to resume", module)
    return code


def child_environment() -> dict[str, str]:
    """Return the environment in which `python -m PACKAGE` runs this code, in any directory.

    The current directory, and a `models/` of the user's in it, stays off the path; the directory of
    our packages, if it is a checkout or a copy that nothing else makes importable, goes onto it.
    """
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    code = str(Path(__file__).resolve().parents[2])
    if Path(code).name not in ("site-packages", "dist-packages"):
        paths = [code, *(path for path in paths if path != code)]
    python_path = {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
    return {**os.environ, **python_path, "PYTHONSAFEPATH": "1"}


def _passed_on(number: int) -> int:
    """Return the signal that ranks get for one that arrived here: Ctrl-C, too, asks them to end."""
    return signal.SIGTERM if number == signal.SIGINT else number


def _codes_of(received: Sequence[int]) -> set[int]:
    """Return the exit codes of ranks that were ended by signals passed on."""
    return {128 + _passed_on(number) for number in received}


def _wait(processes: Sequence[subprocess.Popen[bytes]], received: list[int]) -> int:
    """Wait for all ranks, and pass on signals; after the first failure, end the other ranks.

    Returns:
        That failure's code.
    """
    failure, deadline, passed = 0, float("inf"), 0
    running = dict(enumerate(processes))
    while running:
        for number in received[passed:]:
            passed += 1
            _send(running, _passed_on(number))
        for rank, process in list(running.items()):
            code = process.poll()
            if code is None:
                continue
            del running[rank]
            if code and not failure:
                failure = code if code > 0 else 128 - code
                deadline = time.monotonic() + PATIENCE
                if code < 0 and failure not in _codes_of(received):
                    name = signal.Signals(-code).name
                    print(f"rank {rank} was lost ({name}); ending the others", file=sys.stderr)
                _send(running, signal.SIGTERM)
        if time.monotonic() > deadline:
            _send(running, signal.SIGKILL)
        time.sleep(0.05)
    return failure


def _send(processes: Mapping[int, subprocess.Popen[bytes]], number: int) -> None:
    for process in processes.values():
        if process.poll() is None:
            process.send_signal(number)
