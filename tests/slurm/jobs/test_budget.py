"""Budgets in GPU-hours, and the command that tells people about jobs."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from models.command_line import EXIT_PREEMPTED, EXIT_REJECTED, EXIT_STALLED
from slurm.__main__ import main
from slurm.jobs import budget, notify, watch
from slurm.jobs.budget import BUDGET, gpu_hours
from slurm.jobs.records import JobDir, JobRecord
from slurm.resources import Policy, Resources
from slurm.site import Site
from tests.slurm.jobs.test_requeue import FakeSlurm, _end
from tests.slurm.project import make_run

TELL = """\
#!{python}
import json, sys
with open({path!r}, "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run whose job 7 has a budget of two GPU-hours."""
    found = make_run(tmp_path / "run")
    record(found, "7", Policy(gpu_hours=2.0))
    return found


def record(run_dir: Path, job_id: str, policy: Policy) -> None:
    JobDir(run_dir).write(
        JobRecord(job_id=job_id, kind="train", name="x", cluster="slurm", submitted=0.0, cwd="",
                  code="/old", logs=str(JobDir(run_dir).records_dir), resources=Resources(),
                  policy=policy)
    )  # fmt: skip


def noted(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, *notes: tuple[float, str, dict[str, Any]],
    job_id: str = "7",
) -> None:  # fmt: skip
    """Write notes of so many hours ago."""
    now = time.time()
    with monkeypatch.context() as patched:
        for hours, event, facts in notes:
            patched.setattr(time, "time", lambda then=now - 3600 * hours: then)
            JobDir(run_dir).note(job_id, event, **{"restart": 0, **facts})


START: dict[str, Any] = {"images_seen": 0, "ranks": 4}


def test_all_starts_of_a_run_are_counted(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = JobDir(run_dir)
    assert gpu_hours(jobs) == 0
    noted(run_dir, monkeypatch, (9.0, "start", START), (8.75, "exit", {"rank": 0, "code": 75}),
          (8.5, "signal", {"images_seen": 8}), (6.0, "start", START))  # fmt: skip
    assert gpu_hours(jobs) == pytest.approx(2.0, abs=1e-3), "the end of a lost node is not known"
    record(run_dir, "8", Policy())
    noted(run_dir, monkeypatch, (1.5, "start", START), job_id="8")
    assert gpu_hours(jobs, "8") == pytest.approx(8.0, abs=1e-3), "it trains now"
    noted(run_dir, monkeypatch, (1.0, "exit", {"rank": 0, "code": 0}), job_id="8")
    assert gpu_hours(jobs, "8") == pytest.approx(4.0, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "requeued"),
    [([], True), (["--gpu-hours=3"], True), (["--gpu-hours=2"], False),
     (["--gpu-hours=2", "--over-budget=warn"], True)],
)  # fmt: skip
def test_a_run_over_its_budget_is_not_requeued(
    options: list[str], requeued: bool, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm(monkeypatch)
    exited = {"rank": 0, "code": EXIT_PREEMPTED, "said": "SIGUSR2", "restart": 1}
    started = START | {"restart": 1}
    noted(run_dir, monkeypatch, (0.6, "start", started), (0.01, "exit", exited))
    assert _end(run_dir, 0, *options) == (EXIT_PREEMPTED if requeued else EXIT_STALLED)
    assert slurm.requeued == requeued
    if not requeued:
        why = "its budget of 2 GPU-hours is used up (2.36)"
        assert JobDir(run_dir).attempts("7")[-1]["why"] == why


def test_a_running_job_is_asked_to_stop_once(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(watch, "run_slurm", commands.append)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    noted(run_dir, monkeypatch, (0.4, "start", START))
    watched(run_dir)
    assert commands == [], "1.6 of 2 hours"
    later = time.time() + 3600
    monkeypatch.setattr(budget.time, "time", lambda: later)
    watched(run_dir)
    watched(run_dir)
    assert commands == [["scancel", "--signal=USR2", "7"]]
    assert JobDir(run_dir).attempts("7")[-1]["event"] == BUDGET


class AfterLooks(threading.Event):
    """The end of a batch script, after the watcher has looked three times."""

    looks = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.looks += 1
        return self.looks > 3


def watched(run_dir: Path) -> None:
    watch.watch(run_dir, AfterLooks())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu-hours=1"], "budget of 1 GPU-hours is used up"),
        ([], "budget of 2 GPU-hours is used up"),
        (["--gpu-hours=-1"], "--gpu-hours=-1.0 must be at least 0"),
        (["--gpu-hours=9", "--cluster=local"], "--gpu-hours=9 is for jobs of Slurm"),
        (["--gpu-hours=9"], "is too old to heed it; add --update-code"),
    ],
)
def test_budgets_that_nothing_would_keep_are_rejected(
    options: list[str], message: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    noted(run_dir, monkeypatch, (2.0, "start", START), (1.0, "exit", {"rank": 0, "code": 75}))
    fresh = [] if "old" in message else ["--update-code"]
    resume = ["resume", str(run_dir), "--gpus-per-node=0", "--dry-run", *fresh, *options]
    assert main(resume) == EXIT_REJECTED
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_may_continue_with_a_larger_budget(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noted(run_dir, monkeypatch, (2.0, "start", START), (1.0, "exit", {"rank": 0, "code": 75}))
    resume = ["resume", str(run_dir), "--gpus-per-node=0", "--dry-run", "--update-code"]
    for options in (["--gpu-hours=9"], ["--over-budget=warn"]):
        assert main([*resume, *options]) == 0
        script = capsys.readouterr().out
        hours = options[0].partition("=")[2].replace("warn", "2 --over-budget warn")
        assert f"--gpu-hours {hours};" in script
    assert main(["status", str(run_dir)]) == 0
    assert "4.00 of 2 GPU-hours" in capsys.readouterr().out


def teller(tmp_path: Path, code: str = "") -> tuple[str, Path]:
    """Write a command that notes its arguments; returns it, and where."""
    told, command = tmp_path / "told", tmp_path / "tell people"
    command.write_text(TELL.format(python=sys.executable, path=str(told)) + code)
    command.chmod(0o755)
    return f"'{command}' --to me", told


def read(told: Path) -> list[list[str]]:
    return [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []


@pytest.mark.parametrize("text", ["$(touch x); `id` | cat > y", "two\nlines\x00", "", "-n '\""])
def test_no_shell_reads_what_people_are_told(text: str, tmp_path: Path) -> None:
    command, told = teller(tmp_path)
    notify.notify(Site(notify=command), "failed", tmp_path / "a run", text)
    [arguments] = read(told)
    assert arguments[:-1] == ["--to", "me", "failed", str(tmp_path / "a run")]
    assert arguments[-1].startswith(text.partition("\n")[0])
    assert "\n" not in arguments[-1]


@pytest.mark.parametrize("how", ["missing", "fails", "hangs"])
def test_a_command_that_does_not_work_changes_nothing(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notify, "SECONDS", 1.0)
    code = {"fails": "sys.exit(3)", "hangs": "import time; time.sleep(60)"}.get(how, "")
    command, _ = teller(tmp_path, code)
    command = "/no/such/command" if how == "missing" else command
    notify.notify(Site(notify=command), "failed", tmp_path, "text")
    assert "of the site profile failed: " in capfd.readouterr().err


def test_a_command_that_is_none_is_rejected() -> None:
    with pytest.raises(ValueError, match="is no command"):
        Site(notify="mail 'me")


@pytest.mark.parametrize(
    ("code", "notes", "options", "news"),
    [
        (0, [("exit", {"rank": 0, "code": 0})], [], ["finished", "job 7 is done"]),
        (2, [("exit", {"rank": 0, "code": 2})], [], ["failed", "job 7: exit code 2"]),
        (137, [], [], ["crashed", "job 7 crashed, runs again in 60 s"]),
        (137, [], ["--max-stalled=1"], ["stopped", "job 7: 1 starts in a row saved nothing new"]),
        (0, [("exit", {"rank": 0, "code": 75})], [], []),  # asked to stop, and requeued
    ],
)
def test_people_are_told_of_ends(
    code: int, notes: list[tuple[str, dict[str, Any]]], options: list[str], news: list[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    FakeSlurm(monkeypatch)
    command, told = teller(tmp_path)
    (tmp_path / "site.toml").write_text(f'notify = "{command}"\n')
    monkeypatch.setenv("RELAYWAVE_SITE", str(tmp_path / "site.toml"))
    jobs = JobDir(tmp_path)
    jobs.note("7", "start", restart=1, images_seen=0, ranks=1)
    for event, facts in notes:
        jobs.note("7", event, restart=1, **facts)
    _end(tmp_path, code, *options)
    expected = [["--to", "me", news[0], str(tmp_path), news[1]]] if news else []
    assert read(told) == expected
