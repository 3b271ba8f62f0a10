"""The logic of the GPU tasks, on the processor and on a device that is made up."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.recipes import RECIPES
from tests.gpu import numerics
from tests.gpu.__main__ import MORE_TO_DO, chosen, finish, settle, work
from tests.gpu.cases import families, recipe_names
from tests.gpu.device import Gpu, Processor
from tests.gpu.ledger import Ledger, Outcome, Task

ROOT = Path(__file__).parents[2]
FOREVER = float("inf")


class MadeUp:
    """What stands in for `torch.cuda`: a clock and a memory that functions move."""

    def __init__(self) -> None:
        self.now = self.used = self.peak = 0
        self.unfinished = False
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = cuda.now

            def elapsed_time(self, later: Any) -> float:
                assert not cuda.unfinished, "events were read before the device was waited for"
                return later.at - self.at

        self.Event = Event

    def kernel(self) -> None:
        self.now, self.unfinished = self.now + 20, True
        self.peak = max(self.peak, self.used + 700)

    def synchronize(self) -> None:
        self.unfinished = False

    def empty_cache(self) -> None: ...

    def memory_allocated(self) -> int:
        return self.used

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.used

    def max_memory_allocated(self) -> int:
        assert not self.unfinished
        return self.peak


def test_a_gpu_is_timed_by_its_events_and_measured_by_its_counters() -> None:
    cuda = MadeUp()
    gpu = Gpu(cuda=cuda)
    assert gpu.seconds(cuda.kernel, rounds=3, warm_up=2) == [0.02] * 3
    cuda.used, cuda.peak = 50, 9999  # what was there before, and an older peak
    assert gpu.peak_bytes(cuda.kernel) == 700


TASKS = {task.key: task for task in chosen(debug=True, parts="abcde")}
QUICK = [
    *(f"a/losses/{name}" for name in ("rdm_debug_edm16", "wavediff_debug")),
    *(f"a/samples/{name}" for name in ("rdm_debug_relay64", "ddgan_debug")),
    *("b/seeds/tiny_relay", "b/zero/tiny_wavediff", "b/resume/tiny_edm", "b/splits/tiny_relay"),
    *("c/channels_last/ddgan_debug",),
    *("c/official/wavediff_debug", "c/official/rdm_debug_relay64", "c/trace/ddgan_debug"),
    *("d/samples/rdm_debug_relay64", "d/samples/wavediff_debug", "d/inception"),
    *("e/planned/rdm_debug_edm16", "e/largest/wavediff_debug"),
]


@pytest.mark.parametrize("key", QUICK)
def test_tasks_pass_on_the_processor(key: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as where the tasks run
        work([TASKS[key]], Processor(), tmp_path, FOREVER)
    result = Ledger(tmp_path / "results.json").results[key]
    assert result["state"] == "passed", result["problems"]
    assert result["numbers"]
    json.dumps(result, allow_nan=False)


def test_a_step_that_takes_longer_than_planned_is_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow(Processor):
        def describe(self) -> dict[str, Any]:
            return {"card": "NVIDIA A100-SXM4-40GB"}

        def seconds(self, function: Any, rounds: int, warm_up: int) -> list[float]:
            return [1000.0 * seconds for seconds in super().seconds(function, rounds, warm_up)]

    task = TASKS["c/eager/ddgan_debug"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work([task], Slow(), tmp_path, FOREVER)
    result = Ledger(tmp_path / "results.json").results[task.key]
    assert 0 < result["numbers"]["planned_seconds"] < 1
    assert [problem.split("=")[0] for problem in result["problems"]] == ["plan_off_by"]
    assert finish([task], tmp_path) == 1
    assert "plan_off_by" in capsys.readouterr().out


def test_wrong_arithmetic_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, calls = "a/losses/ddgan_debug", []
    right = numerics.load

    def wrong(config: Any, weights: numerics.Weights, device: torch.device) -> Any:
        networks = right(config, weights, device)
        calls.append(device)
        if len(calls) > 1:  # not the processor's own
            with torch.no_grad():
                for parameter in networks["generator"].parameters():
                    parameter.mul_(1.5)
        return networks

    monkeypatch.setattr(numerics, "load", wrong)
    work([TASKS[key]], Processor(), tmp_path, FOREVER)
    result = Ledger(tmp_path / "results.json").results[key]
    assert result["state"] == "failed"
    assert any("float32/generator/gradient" in problem for problem in result["problems"])


def test_every_recipe_has_its_tasks_and_the_most_telling_come_first() -> None:
    keys = [task.key for task in chosen(debug=False, parts="abcde")]
    assert len(keys) == len(set(keys))
    for name in RECIPES:
        if "debug" not in name and "quickstart" not in name:
            kinds = {key.rpartition("/")[0] for key in keys if key.endswith(f"/{name}")}
            expected = {"a/losses", "a/samples", "d/samples", "e/planned", "e/largest"}
            assert expected | {"c/eager", "c/compiled", "c/compiled_channels_last"} <= kinds
    assert keys[0] == "a/losses/rdm_imagenet256"
    assert keys.index("c/eager/rdm_imagenet256") < keys.index("a/losses/wavediff_stl10")
    assert len(families(recipe_names(debug=False))) == 4  # EDM, relay, WaveDiff, DDGAN


def _task(name: str, outcome: Outcome | None = None) -> Task:
    return Task("a", name, lambda device, directory: outcome or Outcome({"n": 1}))


def test_work_goes_on_where_it_was_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [_task("one"), _task("two", Outcome({"n": 2}, ["n=2 is above 1"])), _task("three")]
    device = Processor()
    work(tasks, device, tmp_path, deadline=0.0)
    assert finish(tasks, tmp_path) == MORE_TO_DO
    work(tasks[:1], device, tmp_path, FOREVER)
    before = Ledger(tmp_path / "results.json").results["a/one"]
    work(tasks, device, tmp_path, FOREVER)
    after = Ledger(tmp_path / "results.json").results
    assert after["a/one"] == before
    assert [entry["state"] for entry in after.values()] == ["passed", "failed", "passed"]
    assert finish(tasks, tmp_path) == 1
    printed = capsys.readouterr().out
    assert "| 2 | 1 | 0 | 0 |" in printed
    assert "| a/two | failed: n=2 is above 1 |" in printed
    assert finish(tasks[::2], tmp_path) == 0


def test_a_task_that_ends_its_worker_or_never_ends_is_given_up(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "results.json")
    assert not settle(ledger, -11)  # no task was running: the next worker would end so, too
    ledger.begin("a/crash")
    assert settle(Ledger(ledger.path), -11)
    assert "ended with -11" in Ledger(ledger.path).results["a/crash"]["problems"][0]
    for _ in range(2):
        assert Ledger(ledger.path).begin("a/machine_gone")
    again = Ledger(ledger.path)
    assert not again.begin("a/machine_gone")
    assert again.left(["a/crash", "a/machine_gone", "a/new"]) == ["a/new"]


def test_results_of_two_machines_are_not_mixed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "results.json")
    ledger.describe({"card": "H100"})
    with pytest.raises(ValueError, match=r"holds results of .*H100.*, this is .*H200.*--out"):
        Ledger(ledger.path).describe({"card": "H200"})


def test_one_command_does_it_all_and_goes_on(tmp_path: Path) -> None:
    options = f"--device cpu --debug --parts a --only samples/ddgan --out {tmp_path}".split()
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        done = subprocess.run(
            ["bash", "tests/gpu/run.sh", *options],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "| a: losses, gradients" in done.stdout
    assert "..." not in done.stdout  # the second call had nothing left to do


def test_wheels_are_those_that_everything_else_is_tested_with() -> None:
    lines = (ROOT / "tests/gpu/wheels.txt").read_text().splitlines()
    wheels = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"\S+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in wheels)
    pinned = {*(ROOT / "constraints.txt").read_text().splitlines()}
    assert {line.split()[0] for line in wheels} <= pinned


def test_a_bare_machine_gets_the_wheels_or_is_told_how(tmp_path: Path) -> None:
    """As on the GPU machine: a Python without any package, here one that only unpacks."""
    copied = tmp_path / "tests/gpu"
    copied.mkdir(parents=True)
    shutil.copy(ROOT / "tests/gpu/run.sh", copied)
    environment = os.environ | {"PYTHON": str(tmp_path / "python"), "PYTHONPATH": ""}
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    (tmp_path / "python").chmod(0o755)
    command = ["bash", str(copied / "run.sh")]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "run tests/gpu/fetch.sh first" in told.stderr
    (copied / "wheels").mkdir()
    with zipfile.ZipFile(copied / "wheels/bare-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("bare/__init__.py", "")
    (copied / "__main__.py").write_text("import bare; print('brought', bare.__file__)")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "gpu_site/bare/__init__.py" in done.stdout, done.stderr
