"""Several ranks on this machine: `--ranks N` of every command that can share its work.

torchrun does the same, but returns 1 for every failure and buries the one line that says what was
wrong under pages of its own; here the ranks' exit codes (rejected, stopped, diverged) pass through.
On several machines a launcher such as Slurm sets the ranks' environment instead.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PATIENCE = 60.0
"""Seconds that ranks have to end after one of them did, before they are killed."""
LAUNCHED = "RELAYWAVE_LAUNCHED"
"""Environment variable that tells a rank that it was started here."""


def should_launch(ranks: int | None) -> bool:
    """Whether this process is to start ranks, rather than being one of them."""
    return ranks is not None and "RANK" not in os.environ


def launch_ranks(module: str, arguments: Sequence[str], ranks: int) -> int:
    """Run `python -m module arguments` as a group of ranks; returns their exit code.

    A rank that fails takes the others with it. SIGTERM, SIGUSR2 and Ctrl-C are passed on, so that
    the ranks can save and end; should this process be killed, Linux ends the ranks.

    Raises:
        ValueError: The number of ranks is not positive.
    """
    if ranks < 1:
        raise ValueError(f"--ranks={ranks} must be at least 1")
    command = [sys.executable, "-m", module, *arguments]
    environment = child_environment()
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    threads = max((os.cpu_count() or 1) // ranks, 1)
    group = {"OMP_NUM_THREADS": str(threads), **environment, **address, LAUNCHED: "1"}
    processes = [
        subprocess.Popen(
            command,
            env={**group, "RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(ranks)},
        )
        for r in range(ranks)
    ]
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda received, _: _send(processes, received))
    signal.signal(signal.SIGINT, lambda *_: _send(processes, signal.SIGTERM))
    return _wait(processes)


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


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all ranks; after the first failure, end the others. Returns that failure's code."""
    failure, deadline = 0, float("inf")
    running = dict(enumerate(processes))
    while running:
        for rank, process in list(running.items()):
            code = process.poll()
            if code is None:
                continue
            del running[rank]
            if code and not failure:
                failure = code if code > 0 else 128 - code
                deadline = time.monotonic() + PATIENCE
                if code < 0:
                    name = signal.Signals(-code).name
                    print(f"rank {rank} was lost ({name}); ending the others", file=sys.stderr)
                _send(list(running.values()), signal.SIGTERM)
        if time.monotonic() > deadline:
            _send(list(running.values()), signal.SIGKILL)
        time.sleep(0.05)
    return failure


def _send(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
