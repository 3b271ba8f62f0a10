"""Scheduled evaluation by a protocol with several ranges of seeds: the best of them counts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from dist_train.recipes import find_recipe
from dist_train.runtime.run_dir import settle_config
from evaluation import evaluate
from evaluation.protocols import PROTOCOLS
from evaluation.results.result_file import find_results, read_result
from evaluation.samples.generate import GeneratedImages
from models.config_io import ConfigError, override
from slurm.continuous_eval import schedule as module
from slurm.continuous_eval.command import read_checked
from slurm.continuous_eval.reconcile import reconcile
from slurm.continuous_eval.results import all_values
from slurm.continuous_eval.schedule import EvaluationSchedule, ScheduledProtocol, write_schedule
from slurm.jobs import jobs
from slurm.jobs.ranks import Task
from slurm.monitor.status import format_status, run_status
from slurm.report.collect import collect
from slurm.site import Site
from tests.evaluation.test_commands import write_images
from tests.evaluation.test_ranks import write_generator
from tests.slurm.continuous_eval.test_continuous_eval import Queue

FD = "fd_effnet_lite0_block4"
KEY = f"three:{FD}.distance"


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    return Queue(monkeypatch)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with three snapshots that `edm`, here with six samples of each range, evaluates."""
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PROTOCOLS, "edm", dataclasses.replace(PROTOCOLS["edm"], num_samples=6))
    run_dir = tmp_path / "run"
    settle_config(run_dir, override(find_recipe("rdm_debug_edm16")(), ["total_images=64"]))
    for images in (8, 16, 24):
        write_generator(run_dir / "snapshots" / f"{images:012d}", images)
    words = ("--reference", str(write_images(tmp_path / "images", 8, size=16)))
    words += ("--protocol", "edm", "--detector", "effnet_lite0", "--metrics", "fd:block4")
    schedule = EvaluationSchedule(
        protocols=(ScheduledProtocol(name="three", words=words),),
        best=KEY, keep_snapshots=1, backoff_seconds=0.0,
    )  # fmt: skip
    write_schedule(run_dir, schedule)
    return run_dir


def work(queue: Queue, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Do the jobs of the last submission, as tasks of Slurm would."""
    for task, job in enumerate(queue.submissions[-1].jobs):
        job_id = f"{number}_{task}" if len(queue.submissions[-1].jobs) > 1 else str(number)
        for place in (module, jobs):
            monkeypatch.setattr(place, "this_task", lambda i=job_id: Task(0, 0, 1, ("h",), i, 0))
        monkeypatch.setattr(jobs, "enter_rank", lambda task: None)
        assert job() == "finished"


def test_the_minimum_over_the_ranges_is_the_value_of_a_snapshot(
    run_dir: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(reconcile(run_dir, Site(), queue.submit).submitted) == 3
    work(queue, monkeypatch, 1)
    queue.jobs.clear()
    results = {p.parent.name: read_result(p) for p in run_dir.glob("evaluation/0*/*.json")}
    assert len(results) == 3, "one file of each snapshot"
    minima = {}
    for images, result in results.items():
        ranges = result["metrics"][FD]["ranges"]
        minima[int(images)] = min(entry["values"]["distance"] for entry in ranges.values())
        assert len(ranges) == 3
    report = reconcile(run_dir, Site(), queue.submit)
    assert (report.done, report.submitted) == (3, [])
    values = {seen: row[KEY.replace(":", "/")] for (seen, _), row in all_values(run_dir).items()}
    assert values == minima, "the loggers, too, get these"
    best = min(minima, key=lambda images: minima[images])
    assert report.best == best
    left = {int(path.name) for path in (run_dir / "snapshots").iterdir()}
    assert left == {best, 24}, "the best and the newest"
    assert f"best {minima[best]:.4g} at {best}" in format_status(run_status(run_dir, {}))
    found = [result["metrics"][FD]["values"]["distance"] for result in find_results([run_dir])]
    assert sorted(found) == sorted(minima.values()), "a row of each snapshot in the table"
    (run,) = collect([run_dir]).runs
    assert len(run.results) == 3


def test_a_job_that_died_between_the_ranges_is_followed_by_one_that_resumes(
    run_dir: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw, compute = GeneratedImages.draw, evaluate._evaluate_images

    def noted(self: GeneratedImages, indices: Any) -> Any:
        drawn.append(self.spec.seeds[indices[0]])
        return draw(self, indices)

    def dying(*arguments: Any) -> Any:
        if drawn:
            raise MemoryError
        return compute(*arguments)

    monkeypatch.setattr(GeneratedImages, "draw", noted)
    monkeypatch.setattr(evaluate, "_evaluate_images", dying)
    for images in (16, 24):
        (run_dir / "snapshots" / f"{images:012d}").rename(run_dir / str(images))
    reconcile(run_dir, Site(), queue.submit)
    with pytest.raises(SystemExit):
        work(queue, monkeypatch, 1)
    queue.jobs.clear()
    assert drawn == [0]
    assert all_values(run_dir) == {}, "what is not complete has no value"
    monkeypatch.setattr(evaluate, "_evaluate_images", compute)
    assert len(reconcile(run_dir, Site(), queue.submit).submitted) == 1
    work(queue, monkeypatch, 2)
    assert drawn == [0, 6, 12]
    names = [p.name for p in (run_dir / "evaluation" / f"{8:012d}").glob("[!.]*")]
    assert names == ["three.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "edm", "--detector", "effnet_lite0"], ""),
        (["--protocol", "edm,adm", "--detector", "effnet_lite0"],
         "give 2 results (edm, adm), but a scheduled evaluation has one"),
        (["--detector", "effnet_lite0,torchscript", "--weights", "torchscript=w.pt"], "2 results"),
    ],
)  # fmt: skip
def test_a_plan_names_one_result_of_each_protocol(
    run_dir: Path, tmp_path: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.dry_run.build_detector", _effnet)
    words = ["--reference", str(tmp_path / "images"), *words, "--metrics", "fd:block4"]
    if "effnet_lite0,torchscript" in words:
        words[-1] = "effnet_lite0=fd:block4,torchscript=fd:block4"
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"protocols": [{"name": "q", "words": words}]}))
    if not message:
        assert read_checked(path).protocols[0].name == "q"
        return
    with pytest.raises(ConfigError) as why:
        read_checked(path)
    assert message in str(why.value)


def _effnet(config: Any) -> Any:
    """Return a detector whose weights are at hand, whatever is asked for."""
    from evaluation.detectors.base import DetectorConfig
    from evaluation.detectors.registry import build_detector

    return build_detector(DetectorConfig("effnet_lite0"))
