"""Signals before, in and after the loop, and how processes end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.command_line import EXIT_PREEMPTED
from tests.paths import ROOT

WAITING = """
import ctypes, signal, sys, time
from dist_train.runtime.preemption import StopRequest, exiting_when_asked

with exiting_when_asked():
    print("starting", flush=True)
    if sys.argv[1] == "start":
        # A call during which Python runs no handlers, as the wait for other ranks is one.
        waiting = ctypes.CDLL(None).sem_wait
        waiting(ctypes.create_string_buffer(32))
    with StopRequest() as stop:
        print("training", flush=True)
        while not stop.requested:
            time.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)  # a second one
    signal.raise_signal(signal.SIGTERM)  # after the loop: the end is settled
    print("saved", flush=True)
"""
PUBLISHING = """
import sys, threading, time
from torch.distributed import TCPStore
from models.command_line import leave

store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

def publish():
    while True:
        store.set("pulse", "1")

for _ in range(4):
    threading.Thread(target=publish, daemon=True).start()
time.sleep(0.2)
print("done")
leave(75)
"""


def _start(script: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, env={**os.environ, **variables},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_before_the_loop_a_signal_ends_the_process_whatever_it_waits_for(name: str) -> None:
    process = _start(WAITING, "start")
    assert process.stdout is not None
    assert process.stdout.readline() == "starting\n"
    process.send_signal(signal.Signals[name])
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_PREEMPTED
    assert errors == (
        f"error: stopped by {name} before training began: nothing is lost,"
        " run the same command again\n"
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_while_torch_is_imported_ends_the_process(name: str, tmp_path: Path) -> None:
    """The import takes seconds, or minutes from a network file system."""
    (tmp_path / "torch.py").write_text(
        f"import os, signal, time\nos.kill(os.getpid(), signal.{name})\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-P", "-m", "dist_train", "rdm_debug_edm16", "--run-dir"]
    done = subprocess.run(
        [*command, tmp_path / "run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (EXIT_PREEMPTED, "")
    assert done.stderr.startswith(f"error: stopped by {name} before training began")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_ranks_of_our_launcher_leave_the_line_to_it() -> None:
    process = _start(WAITING, "start", RELAYWAVE_LAUNCHED="1")
    assert process.stdout is not None
    assert process.stdout.readline() == "starting\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == EXIT_PREEMPTED


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_in_the_loop_signals_are_requests_and_afterwards_nothing(name: str) -> None:
    process = _start(WAITING, "loop")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["starting\n", "training\n"]
    process.send_signal(signal.Signals[name])
    assert process.communicate(timeout=60) == ("saved\n", "")
    assert process.returncode == 0


def test_threads_in_the_store_do_not_abort_a_process_that_leaves() -> None:
    process = _start(PUBLISHING)
    assert process.communicate(timeout=60) == ("done\n", "")
    assert process.returncode == 75


@pytest.mark.distributed
@pytest.mark.parametrize("started", [0, 2])
def test_a_launcher_that_is_stopped_early_says_so_once(tmp_path: Path, started: int) -> None:
    """At once, while it imports, and when its ranks import: they may not handle signals yet."""
    from tests.dist_train.test_command import TINY

    command = [sys.executable, "-m", "dist_train", *TINY, "total_images=80", "--ranks", "2"]
    launcher = subprocess.Popen(
        [*command, "--run-dir", str(tmp_path / "run")], cwd=ROOT, text=True, stderr=subprocess.PIPE
    )
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    status = Path(f"/proc/{launcher.pid}/status")
    while launcher.poll() is None and not (
        len(children.read_text().split()) >= started and _handles_signals(status)
    ):
        time.sleep(0.01)
    launcher.send_signal(signal.SIGTERM)
    errors = launcher.communicate(timeout=120)[1]
    assert launcher.returncode == EXIT_PREEMPTED, errors
    assert errors.count("\n") == 1, errors
    assert re.search("stopped (by SIGTERM|when asked to)", errors)


def _handles_signals(status: Path) -> bool:
    caught = int(re.findall(r"SigCgt:\s*(\w+)", status.read_text())[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)
