"""What `status` shows, without Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dist_train.runtime.metrics_file import METRICS
from slurm import slurm_cli
from slurm.jobs import exit_reason
from slurm.jobs.exit_reason import exit_states
from slurm.jobs.hosts import EXCLUDE
from slurm.jobs.records import JobDir, JobRecord
from slurm.monitor.commands import format_history, run_history
from slurm.monitor.status import UNKNOWN_QUEUE, find_job_dirs, format_status, run_status
from slurm.monitor.watch import COLUMNS, row_of
from slurm.resources import Resources
from slurm.slurm_cli import QueuedJob, explain
from tests.slurm.project import make_run


def _submit(root: Path, job_id: str, name: str, submitted: float) -> None:
    JobDir(root).write(
        JobRecord(job_id=job_id, kind=name.partition("-")[0], name=name, cluster="slurm",
                  submitted=submitted, cwd="", code="", logs=str(JobDir(root).records_dir),
                  resources=Resources())
    )  # fmt: skip


def test_a_pending_job_says_why_and_what_to_do(tmp_path: Path) -> None:
    _submit(tmp_path, "7", "train-x", 0.0)
    reason = "ReqNodeNotAvail, May be reserved for other job"
    queue = {"7": QueuedJob("7", "x", "PENDING", reason, "", "0:00", "", "2026-01-02T03:04:05")}
    job = run_status(tmp_path, queue)["jobs"][0]
    assert job["reason"] == reason
    text = format_status(run_status(tmp_path, queue))
    assert f"train 7  PENDING ({reason})  from 2026-01-02T03:04:05" in text
    assert text.endswith("or before with a --time or --time-min that ends sooner")


@pytest.mark.parametrize(
    ("reason", "part"),
    [
        ("ReqNodeNotAvail, UnavailableNodes:n2", "down, drained or reserved"),
        ("DependencyNeverSatisfied", "cancel it"),
        ("Dependency", "waits for other jobs"),
        ("QOSMaxJobsPerUserLimit", "limit of the QOS"),
        ("AssocGrpGRES", "limit of the account"),
        ("PartitionNodeLimit", "its partition"),
        ("JobHeldUser", "scontrol release"),
        ("launch failed requeued held", "scontrol release"),
        ("Resources", ""),
        ("None", ""),
    ],
)
def test_reasons(reason: str, part: str) -> None:
    assert part in explain(reason)
    assert bool(part) == bool(explain(reason))


def test_only_the_newest_job_of_each_name_is_shown(tmp_path: Path) -> None:
    for number in range(1, 4):
        _submit(tmp_path, str(number), "reconcile-x", float(number))
    _submit(tmp_path, "9", "train-x", 0.0)
    running = {"2": QueuedJob("2", "x", "RUNNING", "None", "n1", "0:10", "", "")}
    status = run_status(tmp_path, running)
    assert len(status["jobs"]) == 4, "all of them for scripts"
    lines = format_status(status).splitlines()[1:]
    assert [line.split()[2] for line in lines] == ["9", "2", "3"]


LOGS = {
    "rejected": ["dist_train: label_dim=8, but /set has 9 classes; set it to 9",
                "srun: error: n1: task 0: Exited with exit code 2"],
    "raised": ["  File loop.py, line 3", "torch.OutOfMemoryError: CUDA out of memory.",
               "srun: error: n1: task 0: Exited with exit code 1"],
    "killed": ["dist_train: of an earlier start", "start 2 of job 7",
               "srun: error: n2: task 1: Killed"],
    "ended by Slurm": ["error: the set is damaged", "srun: error: n2: task 1: Killed",
                       "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2030-01-01 ***"],
    "late": ["slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2030-01-01 DUE TO TIME LIMIT ***"],
    "silent": ["warning: nothing that matters"],
}  # fmt: skip
WHY = {
    "rejected": "label_dim=8, but /set has 9 classes; set it to 9",
    "raised": "torch.OutOfMemoryError: CUDA out of memory.",
    "killed": "n2: task 1: Killed",
    "ended by Slurm": "the set is damaged",
    "late": "*** JOB 7 ON n1 CANCELLED AT 2030-01-01 DUE TO TIME LIMIT ***",
    "silent": "",
}


@pytest.mark.parametrize("how", LOGS)
def test_a_job_that_failed_says_why_and_where_its_log_is(tmp_path: Path, how: str) -> None:
    _submit(tmp_path, "7", "train-x", 0.0)
    jobs = JobDir(tmp_path).records_dir
    (jobs / "7_0_log.err").write_text("\n".join(LOGS[how]) + "\n")
    status = run_status(tmp_path, {}, {"7": ("FAILED", "2")})
    assert status["jobs"][0]["why"] == WHY[how]
    lines = format_status(status).splitlines()[1:]
    assert lines[0] == "  └ train 7  FAILED, exit code 2"
    expected = [f"      {WHY[how]}"] if WHY[how] else []
    assert lines[1:] == [*expected, f"      log: {jobs / '7_0_log.err'}"]


def test_a_job_that_is_not_run_again_says_what_it_noted(tmp_path: Path) -> None:
    _submit(tmp_path, "7", "train-x", 0.0)
    (JobDir(tmp_path).records_dir / "7_0_log.err").write_text("dist_train: something older\n")
    JobDir(tmp_path).note("7", "crash", requeue=False, why="it crashed 11 times", said="boom")
    status = run_status(tmp_path, {}, {"7": ("FAILED", "4")})
    assert status["jobs"][0]["why"] == "it crashed 11 times: boom"


def test_hosts_on_which_a_job_crashed_are_listed(tmp_path: Path) -> None:
    _submit(tmp_path, "7", "train-x", 0.0)
    jobs = JobDir(tmp_path)
    for host in ("n2", "n3", "n2"):
        jobs.note("7", "crash", restart=0, requeue=True, hosts=[host])
    jobs.note("7", EXCLUDE, restart=0, hosts=["n2"])
    status = run_status(tmp_path, {})
    [job] = status["jobs"]
    assert job["crashes_by_host"] == {"n2": 2, "n3": 1}
    assert job["excluded"] == ["n2"]
    assert "crashed on n2 2x, n3 1x; excluded: n2" in format_status(status)


def test_jobs_that_succeeded_have_no_reason(tmp_path: Path) -> None:
    _submit(tmp_path, "7", "train-x", 0.0)
    (JobDir(tmp_path).records_dir / "7_0_log.err").write_text("dist_train: of an earlier start\n")
    assert run_status(tmp_path, {}, {"7": ("COMPLETED", "")})["jobs"][0]["why"] == ""
    JobDir(tmp_path).note("7", "exit", rank=0, code=0)
    assert run_status(tmp_path, {})["jobs"][0]["why"] == "", "nor without accounting"


def test_directories_without_a_job_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a run nor a job"):
        find_job_dirs([tmp_path])


def _answers(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let every command of Slurm answer a text; separators are written as < and > in it."""
    answer = text.replace("<", slurm_cli.ROW).replace(">", slurm_cli.FIELD)
    monkeypatch.setattr(slurm_cli, "run_slurm", lambda command: answer)


@pytest.mark.parametrize("name", ["a|b", "x|RUNNING|None", "two\nlines", " spaced ", "a,b=c", "|"])
def test_jobs_of_any_name_in_the_queue(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = "PENDING>Resources>n1>0:10>1:00>N/A>2026-01-02T03:04:05"
    _answers(monkeypatch, f"<7>{row}>{name}\n<8_1>{row}>ours\n")
    queue = slurm_cli.queued()
    assert [job.name for job in queue.values()] == [name, "ours"]
    assert queue["8_1"].state == "PENDING"
    assert queue["7"].submitted == queue["8_1"].submitted > 0
    _answers(monkeypatch, "7>COMPLETED|odd>0:0\n")
    assert slurm_cli.accounting(["7"], ("JobID", "State", "ExitCode"))[0]["ExitCode"] == "0:0"


def test_fields_in_the_comment_of_a_job_are_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    _answers(monkeypatch, "JobId=7 JobState=RUNNING Restarts=1 Comment=x JobState=FAILED Restarts=")
    assert slurm_cli.describe("7")["JobState"] == "RUNNING"
    assert slurm_cli.describe("7")["Restarts"] == "1"


def test_a_job_that_has_the_id_of_a_lost_one_is_another(tmp_path: Path) -> None:
    _submit(tmp_path, "7", "train-x", 1e9)
    (record,) = JobDir(tmp_path).records()

    def job(name: str, submitted: float) -> dict[str, QueuedJob]:
        return {"7": QueuedJob("7", name, "RUNNING", "None", "n1", "", "", "", submitted)}

    assert record.queued(job("train-x", 1e9 + 5))
    assert record.queued(job("train-x", 1e9 + 5000)), "requeued"
    assert record.queued(job("renamed", 1e9 + 5))
    assert not record.queued(job("other", 1e9 + 5000))
    assert not run_status(tmp_path, job("other", 1e9 + 5000))["jobs"][0]["in_queue"]


def test_unfinished_runs_that_are_not_queued_say_how_to_resume(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    assert not run_status(run_dir, {})["lost"], "never submitted"
    _submit(run_dir, "7", "train-x", 0.0)
    text = format_status(run_status(run_dir, {}))
    assert f"unfinished, not queued: `relaywave slurm resume {run_dir}`" in text
    running = {"7": QueuedJob("7", "train-x", "RUNNING", "None", "n1", "", "", "")}
    assert not run_status(run_dir, running)["lost"]
    assert not run_status(run_dir, UNKNOWN_QUEUE)["lost"], "Slurm did not answer"


def test_gpu_hours_where_accounting_does_not_count_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    JobDir(tmp_path).write(
        JobRecord(job_id="7", kind="train", name="x", cluster="slurm", submitted=0.0, cwd="",
                  code="", logs="", resources=Resources(nodes=2, gpus_per_node=4))
    )  # fmt: skip
    for tres, hours in (("cpu=8,node=2", 8.0), ("cpu=8,gres/gpu=6", 6.0)):
        _answers(monkeypatch, f"7>Unknown>COMPLETED>3600>2>{tres}>start>end>0:0>x\n")
        assert run_history(tmp_path)["gpu_hours"] == hours


def test_what_requeues_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two starts of an hour each on four GPUs, half an hour apart; half of the time was steps."""
    run_dir = make_run(tmp_path / "run")
    JobDir(run_dir).write(
        JobRecord(job_id="7", kind="train", name="x", cluster="slurm", submitted=0.0, cwd="",
                  code="", logs="", resources=Resources(gpus_per_node=4))
    )  # fmt: skip
    line = {"images_seen": 3600, "step": 1, "speed/images_per_second": 1.0}
    (run_dir / METRICS).write_text(json.dumps({**line, "time": 0.0}) + "\n")
    day = "2026-01-02T"
    _answers(
        monkeypatch,
        f"7>Unknown>REQUEUED>3600>1>cpu=1>{day}01:00:00>{day}02:00:00>0:0>x\n"
        f"7>Unknown>COMPLETED>3600>1>cpu=1>{day}02:30:00>{day}03:30:00>0:0>x\n",
    )
    found = run_history(run_dir)
    assert found["requeues"] == 1
    assert found["requeued_seconds"] == 1800
    assert found["lost_gpu_hours"] == 4.0
    text = "1 requeues: 30 min between starts; 4.00 GPU-hours of starting, stopping and lost steps"
    assert text in format_history(found)


def test_the_utilisation_of_the_gpus(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    line = {"images_seen": 8, "step": 1, "time": 0.0, "speed/images_per_second": 2.0}
    for mfu, text in ((None, ""), (0.412, "  MFU 41%")):
        own = {} if mfu is None else {"speed/mfu": mfu}
        (run_dir / METRICS).write_text(json.dumps(line | own) + "\n")
        status = run_status(run_dir, {})
        assert f"2 images/s{text}  " in format_status(status) + "  "
        cell = row_of(run_dir, status)[COLUMNS.index("MFU")]
        assert cell == text.removeprefix("  MFU ")


@pytest.mark.parametrize(
    ("submitted", "name", "is_ours"),
    [
        ("2026-01-02T03:00:05", "x", True),
        ("2026-01-02T03:00:05", "renamed", True),
        ("2026-01-03T00:00:00", "x", True),  # requeued
        ("2026-01-03T00:00:00", "other", False),
        ("2025-01-01T00:00:00", "other", False),
        ("2025-01-01T00:00:00", "x", False),  # its id and name have come again
        ("2026-01-02T02:30:00", "x", True),  # the clock of the login node is wrong
        ("2026-01-03T00:00:00", "two\nlines", False),
        ("Unknown", "x", True),
    ],
)
def test_accounting_of_jobs_is_known_by_id_and_submission(
    submitted: str, name: str, is_ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = JobRecord(
        job_id="7", kind="train", name="x", cluster="slurm", cwd="", code="", logs="",
        submitted=slurm_cli.seconds_of("2026-01-02T03:00:00"), resources=Resources(),
    )  # fmt: skip
    JobDir(tmp_path).write(record)
    monkeypatch.setattr(exit_reason, "have_slurm", lambda: True)
    _answers(monkeypatch, f"7>{submitted}>FAILED>2:0>{name}\n")
    assert exit_states([record]) == ({"7": ("FAILED", "2")} if is_ours else {})
    _answers(monkeypatch, f"7>{submitted}>FAILED>3600>1>cpu=1>start>end>2:0>{name}\n")
    assert bool(run_history(tmp_path)["runs"]) == is_ours
    queue = {"7": QueuedJob("7", name, "RUNNING", "None", "n1", "", "", "",
                            slurm_cli.seconds_of(submitted)),
             "8": QueuedJob("8", "y", "RUNNING", "None", "n1", "", "", "")}  # fmt: skip
    assert JobDir(tmp_path).own(queue).keys() == ({"7", "8"} if is_ours else {"8"})
