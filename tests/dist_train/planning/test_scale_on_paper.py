"""The tables of docs/scaling.md, and the months that are simulated for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dist_train.planning.plan import best_interval
from slurm.resources import Policy
from tests.benchmarks import scale_on_paper as paper
from tests.paths import ROOT

DOCUMENT = (ROOT / "docs/scaling.md").read_text().splitlines()
JOB = paper.Job(ranks=64, interval=3600.0, stall=2.0, write=10.0, read=5.0)
NEVER = 1e12
"""GPU-hours per failure."""


@pytest.mark.parametrize(
    "name",
    ["rdm_imagenet64", "rdm_imagenet256", "rdm_celebahq256", "rdm_lsun_bedroom256",
     "wavediff_cifar10", "ddgan_cifar10"],
)  # fmt: skip
def test_counts_and_predictions_of_recipes_are_those_of_the_document(name: str) -> None:
    assert paper.recipe_row(name) in DOCUMENT


@pytest.mark.parametrize("name", ["rdm_celebahq256", "wavediff_cifar10", "ddgan_lsun_church256"])
def test_predicted_samplers_are_those_of_the_document(name: str) -> None:
    assert paper.sampling_row(name) in DOCUMENT


def test_every_recipe_has_its_row_with_what_bounds_it() -> None:
    bounds = ("arithmetic", "memory", "launches", "network", "data")
    for name in paper.full_size():
        rows = [line for line in DOCUMENT if line.startswith(f"| `{name}` |")]
        assert rows, name
        assert all(row.split(" | ")[-1].startswith(bounds) for row in rows)


def test_efficiencies_of_many_gpus_are_those_of_the_document() -> None:
    for lines in (paper.scale(), paper.beyond()):
        assert {*lines} - {""} <= {*DOCUMENT}


def test_the_month_of_the_document_is_simulated_again() -> None:
    assert {*paper.month()} <= {*DOCUMENT}


def test_a_seed_gives_one_month() -> None:
    assert paper.simulate(JOB, seed=3) == paper.simulate(JOB, seed=3)
    assert paper.simulate(JOB, seed=3) != paper.simulate(JOB, seed=4)


def test_every_second_of_a_month_is_accounted_for() -> None:
    for seed in range(50):
        job = replace(JOB, gpu_hours_per_failure=5000.0, policy=Policy(max_crashes=1000))
        account = paper.simulate(job, seed)
        total = account.allocated + account.queued
        assert paper.MONTH <= total < paper.MONTH + 3 * 3600  # the last wait may end later
        assert min(account.trained, account.lost, account.started, account.stalled) >= 0
        assert account.restarts >= account.crashes


def test_without_failures_only_starts_time_limits_and_checkpoints_cost() -> None:
    account = paper.simulate(replace(JOB, gpu_hours_per_failure=NEVER), seed=0)
    assert (account.crashes, account.lost) == (0, 0)
    starts = account.restarts
    assert account.started == starts * (paper.START_SECONDS + JOB.read)
    assert 30 <= starts <= 31
    hours = (account.trained + account.stalled) / 3600
    assert account.stalled == pytest.approx(hours * JOB.stall + starts * JOB.write, rel=0.05)


def test_a_crash_loses_what_was_trained_since_the_last_complete_checkpoint() -> None:
    account = paper.Account()
    assert paper._train(account, JOB, 2.5 * 3602, crashed=True)
    assert (account.trained, account.stalled) == (2 * 3600, 2 * 2)
    assert account.lost == pytest.approx(1801)
    assert not paper._train(account, JOB, 3605.0, crashed=True), "it was being written"
    assert account.trained == 2 * 3600


def test_the_policy_of_requeues_decides() -> None:
    often = replace(JOB, gpu_hours_per_failure=1.0, policy=Policy(max_stalled=3))
    account = paper.simulate(often, seed=0)  # a failure each minute: nothing is ever saved
    assert account.ended
    assert (account.crashes, account.trained) == (3, 0)
    hourly = replace(JOB, interval=60.0, gpu_hours_per_failure=64.0)
    saving = paper.simulate(hourly, seed=0)
    assert saving.crashes > 300
    assert not saving.ended, "each start saved something new"
    slow = replace(hourly, policy=Policy(backoff_seconds=1000))
    assert paper.simulate(slow, seed=0).queued > saving.queued


def test_young_and_daly_lose_least_of_the_intervals() -> None:
    job = replace(JOB, stall=30.0, gpu_hours_per_failure=2000.0, policy=Policy(max_crashes=10**6))
    best = best_interval(job.stall, job.ranks, job.gpu_hours_per_failure)
    goodput = {
        factor: paper.average(replace(job, interval=factor * best))["goodput"]
        for factor in (0.2, 1.0, 5.0)
    }
    assert goodput[1.0] > goodput[0.2]
    assert goodput[1.0] > goodput[5.0]
