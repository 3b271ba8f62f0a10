"""Everything to be known from a GPU machine, most telling first: `bash tests/gpu/run.sh`.

    python -m tests.gpu [--device cuda] [--debug] [--out build/gpu] [--seconds 530] [--parts abcde]

Tasks run one after the other in a worker process; one that crashes or hangs costs only itself.
Results are kept in OUT/results.json; called again, it goes on where it was stopped. Exit codes:
0 all passed, 1 some did not, 75 there is more to do: call it again.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.gpu.device import Device, Gpu, Processor
from tests.gpu.ledger import Ledger, Outcome, Task
from tests.gpu.table import print_table

TASK_LIMIT = 200
"""Seconds that one task may take."""
MORE_TO_DO = 75


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--debug", action="store_true", help="recipes of debug size")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="for results")
    parser.add_argument("--seconds", type=float, default=530, help="that this call may take")
    parser.add_argument("--parts", default="abcde", help="letters of the parts to run")
    parser.add_argument("--only", default="", help="run tasks whose names contain this")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    tasks = chosen(options.debug, options.parts, options.only)
    if options.worker:
        device = Processor(options.debug) if options.device == "cpu" else Gpu(options.debug)
        work(tasks, device, options.out, time.monotonic() + options.seconds)
        return 0
    arguments = list(sys.argv[1:] if argv is None else argv)
    supervise(tasks, options.out, arguments, time.monotonic() + options.seconds)
    return finish(tasks, options.out)


def chosen(debug: bool, parts: str, only: str = "") -> list[Task]:
    """Return the tasks: of each part the most telling ones first, then the rest of each."""
    from tests.gpu import memory, numerics, sampling, throughput, training
    from tests.gpu.cases import MOST_TELLING

    modules = {"a": numerics, "b": training, "c": throughput, "d": sampling, "e": memory}
    tasks = [task for part in parts for task in modules[part].tasks(debug)]
    tasks = [task for task in tasks if only in task.key]

    def is_late(task: Task) -> bool:
        recipe = task.name.rpartition("/")[2]
        heavy = task.name.startswith("compiled")
        known = recipe.startswith(("rdm_", "wavediff_", "ddgan_")) and "debug" not in recipe
        return heavy or (known and recipe not in MOST_TELLING)

    return sorted(tasks, key=is_late)


def work(tasks: Sequence[Task], device: Device, out: Path, deadline: float) -> None:
    """Run the tasks that have no result, until the deadline."""
    ledger = Ledger(out / "results.json")
    ledger.describe(device.describe())
    left = set(ledger.left(task.key for task in tasks))
    for task in tasks:
        if time.monotonic() > deadline:
            return
        if task.key not in left or not ledger.begin(task.key):
            continue
        print(f"{task.key} ...", flush=True)
        faulthandler.dump_traceback_later(TASK_LIMIT, exit=True, file=sys.__stderr__)
        outcome = _run(task, device, out / "work" / task.key)
        faulthandler.cancel_dump_traceback_later()
        ledger.end(task.key, outcome)
        print(f"  {ledger.results[task.key]['state']} {'; '.join(outcome.problems)}", flush=True)


def _run(task: Task, device: Device, directory: Path) -> Outcome:
    directory.mkdir(parents=True, exist_ok=True)
    try:
        return task.run(device, directory)
    except Exception as error:
        traceback.print_exc()
        return Outcome(problems=[f"{type(error).__name__}: {str(error)[:300]}"])


def supervise(tasks: Sequence[Task], out: Path, arguments: Sequence[str], deadline: float) -> None:
    """Start workers until all is done or the time is up; what ended one is the task's result."""
    keys = [task.key for task in tasks]
    while Ledger(out / "results.json").left(keys) and (rest := deadline - time.monotonic()) > 0:
        command = [
            sys.executable,
            "-m",
            "tests.gpu",
            *arguments,
            "--worker",
            "--seconds",
            str(rest),
        ]
        worker = subprocess.Popen(command, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        try:
            code = worker.wait(rest)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
            return
        if not settle(Ledger(out / "results.json"), code):
            return


def settle(ledger: Ledger, code: int) -> bool:
    """Blame the task that was running for a worker's end; whether another worker makes sense."""
    if code == 0:
        return True
    begun = ledger.begun()
    for key in begun:
        ledger.give_up(key, f"the worker ended with {code} (a crash, or {TASK_LIMIT} s were over)")
    return bool(begun)


def finish(tasks: Sequence[Task], out: Path) -> int:
    """Print the table; returns the exit code."""
    ledger = Ledger(out / "results.json")
    keys = [task.key for task in tasks]
    print_table(ledger, keys)
    if ledger.left(keys):
        return MORE_TO_DO
    return int(any(ledger.results[key]["state"] != "passed" for key in keys))


if __name__ == "__main__":
    sys.exit(main())
