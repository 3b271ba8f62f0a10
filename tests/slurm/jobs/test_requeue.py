"""Whether a job runs again: what its notes say, the limits, and the end of its batch script."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dist_train.runtime import run_files
from models.command_line import (
    EXIT_DIVERGED,
    EXIT_LOST,
    EXIT_PREEMPTED,
    EXIT_STALLED,
    EXIT_STORAGE,
)
from slurm.jobs import batch_end, hosts
from slurm.jobs.hosts import EXCLUDE, UNHEALTHY
from slurm.jobs.interpreter import SOURCE
from slurm.jobs.jobs import STOP
from slurm.jobs.records import JobDir, JobRecord
from slurm.jobs.requeue import CAUSES, CONTINUES, LOST, Cause, Decision, Start, decide, starts_of
from slurm.resources import Policy, Resources
from slurm.slurm_cli import SlurmError, SlurmMissing
from tests.slurm.project import make_run

POLICY = Policy(max_stalled=3, max_crashes=4, backoff_seconds=60)
NOTHING, SAVED = (lambda cause: Start(False, cause)), (lambda cause: Start(True, cause))
STOPS = "3 starts in a row saved nothing new"


@pytest.mark.parametrize(
    ("earlier", "saved", "cause", "expected"),
    [
        ([], False, "time limit", Decision(True, CAUSES["time limit"])),
        ([], True, "crash", Decision(True, "it crashed", 60)),
        ([], False, "crash", Decision(True, "it crashed", 60)),
        ([NOTHING("crash")], False, "crash", Decision(True, "it crashed", 120)),
        ([NOTHING("crash")] * 2, False, "crash", Decision(False, STOPS)),
        ([NOTHING("time limit")] * 2, False, "crash", Decision(False, STOPS)),
        ([NOTHING("crash")] * 2, True, "crash", Decision(True, "it crashed", 60)),
        ([SAVED("crash")] * 50, True, "crash", Decision(True, "it crashed", 60)),
        ([SAVED("crash")] * 50, False, "crash", Decision(True, "it crashed", 60)),
        ([NOTHING("time limit")] * 2, False, "time limit", Decision(False, STOPS)),
        ([NOTHING("preemption")] * 9, False, "crash", Decision(True, "it crashed", 60)),
        ([NOTHING("")] * 9, False, "time limit", Decision(True, CAUSES["time limit"])),
        ([NOTHING("crash")] * 2, False, "preemption", Decision(True, CAUSES["preemption"])),
        ([NOTHING("preemption")] * 9, False, "preemption", Decision(True, CAUSES["preemption"])),
        ([NOTHING("signal")] * 9, False, "signal", Decision(True, CAUSES["signal"])),
    ],
)
def test_what_is_counted_is_what_saves_nothing(
    earlier: list[Start], saved: bool, cause: Cause, expected: Decision
) -> None:
    assert decide(earlier, saved, cause, POLICY) == expected


def test_crashes_are_counted_in_a_row() -> None:
    policy = Policy(max_stalled=100, max_crashes=2)
    row = [Start(False, "crash")] * 2
    assert decide(row, False, "crash", policy) == Decision(False, "it crashed 3 times in a row")
    assert decide([*row, Start(True, "crash")], False, "crash", policy).requeue
    assert decide([*row, Start(True, "time limit")], False, "crash", policy).requeue
    assert decide(row, False, "crash", Policy(max_crashes=2, max_stalled=3)).requeue is False


def test_starts_are_read_from_notes_of_any_age() -> None:
    notes: list[dict[str, Any]] = [
        {"event": "start", "restart": 0, "images_seen": 0},
        {"event": "signal", "restart": 0, "images_seen": 80, "requeue": True},  # of older code
        {"event": "start", "restart": 1, "images_seen": 80},
        {"event": "resize", "nodes": 2},
        {"event": "exit", "restart": 1, "rank": 0, "code": 75, "said": "SIGTERM"},
        {"event": "end", "restart": 1, "code": 0, "state": "PENDING"},  # Slurm requeued it
        {"event": "crash", "restart": 2, "images_seen": 80, "requeue": True},  # before it began
        {"event": "start", "restart": 3, "images_seen": 80},
        {"event": "exit", "restart": 3, "rank": 1, "code": 75, "saved": 2},
        {"event": "signal", "restart": 3, "images_seen": 80, "cause": "preemption"},
        {"event": "start", "restart": 4, "images_seen": 80},
    ]
    assert starts_of(notes, 88) == [
        Start(True, "time limit"),
        Start(False, ""),
        Start(False, "crash"),
        Start(True, "preemption"),
        Start(True, ""),
    ]


def test_starts_without_slurm_have_no_numbers() -> None:
    notes: list[dict[str, Any]] = []
    for images in (0, 80, 80, 80):
        notes.append({"event": "start", "restart": 0, "images_seen": images})
        notes.append({"event": "exit", "restart": 0, "rank": 0, "code": 75, "saved": 0})
        notes.append({"event": "signal", "restart": 0, "images_seen": 80, "cause": "time limit"})
    saved = [start.saved for start in starts_of(notes, 80)]
    assert saved == [True, False, False, False]


class FakeSlurm:
    """slurmctld as the end of a batch script sees it: one running job, 7, in its second start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **shown: str) -> None:
        self.commands: list[list[str]] = []
        self.accounted = "CANCELLED by 0"
        self.job = {
            "JobState": "RUNNING",
            "Restarts": "1",
            "Reason": "None",
            "PreemptTime": "None",
            "StartTime": _clock(-3600),
            "EndTime": _clock(3600),
            "EligibleTime": _clock(-3600),
            "NumNodes": "2",
            "Partition": "main",
            "ExcNodeList": "(null)",
            "ReqNodeList": "(null)",
            **shown,
        }
        monkeypatch.setattr(batch_end, "settings", lambda: {"KillWait": "30 sec"})
        rows = [{"State": "PREEMPTED"}]  # of the first start
        monkeypatch.setattr(
            batch_end, "accounting", lambda job_ids, fields: [*rows, {"State": self.accounted}]
        )
        for module in (batch_end, hosts):
            monkeypatch.setattr(module, "describe", lambda job_id: self.job)
            monkeypatch.setattr(module, "run_slurm", self.commands.append)
        monkeypatch.setattr(hosts, "host_names", lambda text: set(text.split(",")))
        monkeypatch.setattr(hosts, "partition_hosts", lambda name: {"n1", "n2", "n3", "n4"})
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    @property
    def excluded(self) -> list[str]:
        """What the job was told to do without, each time."""
        words = [word for command in self.commands for word in command]
        return [w.removeprefix("ExcNodeList=") for w in words if w.startswith("ExcNodeList=")]

    @property
    def requeued(self) -> bool:
        return ["scontrol", "requeue", "7"] in self.commands


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))


def _end(root: Path, code: int, *options: str, trains: bool = True) -> int:
    train = ["--trains"] if trains else []
    return batch_end.main([str(root), str(code), *train, *options])


def _last(root: Path) -> dict[str, Any]:
    return JobDir(root).attempts("7")[-1]


def _note_exits(root: Path, *codes: int, **facts: Any) -> None:
    jobs = JobDir(root)
    jobs.note("7", "start", restart=1, images_seen=0, ranks=len(codes))
    for rank, code in enumerate(codes):
        jobs.note("7", "exit", restart=1, rank=rank, code=code, **facts)


def test_the_end_of_a_batch_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = FakeSlurm(monkeypatch)
    jobs = JobDir(tmp_path)
    assert _end(tmp_path, 0) == 0
    jobs.note("7", "exit", restart=0, rank=0, code=EXIT_DIVERGED)  # of an earlier start
    assert _end(tmp_path, 137, "--backoff-seconds=50") == 137
    assert slurm.commands == [
        ["scontrol", "requeue", "7"],
        ["scontrol", "update", "JobId=7", "StartTime=now+50"],
    ]
    jobs.note("7", "exit", restart=1, rank=0, code=EXIT_DIVERGED)
    assert _end(tmp_path, 137) == EXIT_DIVERGED, "a diverged run is not run again"
    assert len(slurm.commands) == 2


@pytest.mark.parametrize(
    ("shown", "cause"),
    [
        ({"EndTime": _clock(90)}, "time limit"),
        ({"JobState": "COMPLETING", "Reason": "TimeLimit", "EndTime": _clock(0)}, "time limit"),
        ({"PreemptTime": _clock(-5), "EndTime": _clock(20)}, "preemption"),
        ({"JobState": "COMPLETING", "PreemptTime": _clock(-5)}, "preemption"),  # mode CANCEL
        ({"PreemptTime": _clock(-7200)}, "signal"),  # of an earlier start
        ({}, "signal"),
    ],
)
def test_why_a_run_was_asked_to_stop_is_noted(
    shown: dict[str, str], cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm(monkeypatch, **shown)
    _note_exits(tmp_path, EXIT_PREEMPTED, EXIT_PREEMPTED)
    assert _end(tmp_path, 0) == EXIT_PREEMPTED
    assert slurm.requeued
    note = _last(tmp_path)
    assert (note["event"], note["cause"], note["requeue"]) == ("signal", cause, True)


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("code", [0, 75, 143])
def test_a_job_that_gang_scheduling_preempts_is_requeued(
    code: int, trains: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a partition that cancels: slurmctld notes no time of it, only accounting that it was."""
    shown = {"JobState": "COMPLETING", "EndTime": _clock(-2)}
    slurm = FakeSlurm(monkeypatch, **shown)
    slurm.accounted = "PREEMPTED"
    _note_exits(tmp_path, EXIT_PREEMPTED, EXIT_PREEMPTED)
    assert _end(tmp_path, code, trains=trains) == (code or EXIT_PREEMPTED)
    assert slurm.requeued
    assert (_last(tmp_path)["event"], _last(tmp_path)["cause"]) == ("signal", "preemption")


def test_the_next_start_waits_until_slurm_has_killed_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm kills by job id, KillWait seconds after a requeue: the next start must not be there."""
    slurm = FakeSlurm(monkeypatch)
    _note_exits(tmp_path, EXIT_PREEMPTED)
    _end(tmp_path, 0)
    assert slurm.commands[-1] == ["scontrol", "update", "JobId=7", "StartTime=now+31"]
    slurm = FakeSlurm(monkeypatch, EligibleTime=_clock(121))  # as Slurm has it by default
    _end(tmp_path, 0)
    assert slurm.commands == [["scontrol", "requeue", "7"]]


@pytest.mark.parametrize(
    ("shown", "state"),
    [
        ({"JobState": "CANCELLED"}, "CANCELLED"),
        ({"JobState": "COMPLETING"}, "COMPLETING"),
        ({"JobState": "PENDING", "Restarts": "2"}, "PENDING"),
        ({"JobState": "COMPLETING", "Restarts": "2"}, "COMPLETING"),
        ({"JobState": "RUNNING", "Restarts": "2"}, "RUNNING"),  # the remains of a lost node
    ],
)
@pytest.mark.parametrize("code", [0, 75, 137, 143])
def test_what_slurm_ends_or_requeues_itself_is_left_alone_and_noted(
    shown: dict[str, str], state: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm(monkeypatch, **shown)
    _note_exits(tmp_path, EXIT_PREEMPTED, EXIT_PREEMPTED)
    assert _end(tmp_path, code) == code
    assert slurm.commands == []
    assert (_last(tmp_path)["event"], _last(tmp_path)["state"]) == ("end", state)


def test_a_rank_that_fails_is_no_stop_although_srun_stops_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeSlurm(monkeypatch)
    _note_exits(tmp_path, 1, EXIT_PREEMPTED, said="SIGTERM")
    assert _end(tmp_path, EXIT_PREEMPTED) == EXIT_PREEMPTED
    assert _last(tmp_path)["event"] == "crash"
    _note_exits(tmp_path, EXIT_PREEMPTED, said="SIGTERM")
    assert _end(tmp_path, 137) == 137, "the other was killed: it has noted nothing"
    assert _last(tmp_path)["event"] == "crash"


@pytest.mark.parametrize("code", [137, EXIT_PREEMPTED])
def test_ranks_that_srun_kills_before_they_have_noted_the_signal(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeSlurm(monkeypatch)
    _note_exits(tmp_path, EXIT_PREEMPTED, said="SIGUSR2")
    assert _end(tmp_path, code) == code
    assert _last(tmp_path)["event"] == "signal"


def test_a_signal_while_python_starts_is_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeSlurm(monkeypatch)
    assert _end(tmp_path, 128 + signal.SIGUSR2) == 128 + signal.SIGUSR2
    assert _last(tmp_path)["event"] == "signal"


@pytest.mark.parametrize("code", [0, 1, 75, 137, 143])
def test_a_finished_run_is_never_queued_again(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm(monkeypatch)
    run_dir = make_run(tmp_path / "run")
    total = run_files.read_summary(run_dir).total_images
    _note_exits(run_dir, EXIT_PREEMPTED, EXIT_PREEMPTED)
    marker = run_dir / "snapshots" / f"{total:012d}" / "snapshot.json"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text("{}")
    assert _end(run_dir, code) == 0
    assert slurm.commands == []
    assert (_last(run_dir)["event"], _last(run_dir)["code"]) == ("end", 0)


def test_a_run_that_was_stopped_early_is_not_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm(monkeypatch)
    _note_exits(tmp_path, EXIT_PREEMPTED)
    (tmp_path / "slurm" / STOP).write_text("{}")
    assert _end(tmp_path, 0) == 0
    assert slurm.commands == []


def test_a_shortened_time_limit_is_restored_after_one_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm(monkeypatch)
    jobs = JobDir(tmp_path)
    for job_id, least in (("7", 30), ("8", 0)):
        jobs.write(
            JobRecord(job_id=job_id, kind="train", name="x", cluster="slurm", submitted=0.0,
                      cwd="", code="", logs="", resources=Resources(minutes=90, min_minutes=least))
        )  # fmt: skip
        batch_end.restore_time_limit(jobs, job_id)
    assert slurm.commands == [["scontrol", "update", "JobId=7", "TimeLimit=90"]]


def _start(root: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> FakeSlurm:
    """Let start `number` of the job, from 0, begin without a checkpoint."""
    slurm = FakeSlurm(monkeypatch, Restarts=str(number))
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
    JobDir(root).note("7", "start", restart=number, images_seen=0, ranks=1)
    return slurm


def test_a_job_that_always_crashes_stops_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = []
    for number in range(3):
        _start(tmp_path, monkeypatch, number)
        codes.append(_end(tmp_path, 1, "--max-crashes=2"))
    assert codes == [1, 1, EXIT_STALLED]
    assert "not run again: it crashed 3 times in a row" in capsys.readouterr().err


def test_a_job_that_dies_before_it_notes_a_start_stops_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = []
    for number in range(5):
        FakeSlurm(monkeypatch, Restarts=str(number))
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        codes.append(_end(tmp_path, 1))
    assert codes == [1, 1, 1, 1, EXIT_STALLED]


@pytest.mark.parametrize("trains", [True, False])
def test_a_job_whose_time_is_up_again_and_again_before_it_saves_stops(
    trains: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `sample` was requeued for ever."""
    codes = []
    for number in range(4):
        slurm = _start(tmp_path, monkeypatch, number)
        slurm.job["EndTime"] = _clock(60)
        saved = 1 if number == 0 else 0
        JobDir(tmp_path).note("7", "exit", restart=number, rank=0, code=75, saved=saved)
        codes.append(_end(tmp_path, 75, "--max-stalled=3", trains=trains))
    assert codes == [75, 75, 75, EXIT_STALLED]
    assert _last(tmp_path)["why"] == "3 starts in a row saved nothing new"


@pytest.mark.parametrize("trains", [True, False])
def test_preemption_before_the_first_save_is_no_stall(
    trains: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        slurm = _start(tmp_path, monkeypatch, number)
        slurm.job["PreemptTime"] = _clock(-1)
        JobDir(tmp_path).note("7", "exit", restart=number, rank=0, code=75)
        assert _end(tmp_path, 75, trains=trains) == 75
        assert slurm.requeued


@pytest.mark.parametrize("trains", [True, False])
def test_a_job_whose_storage_failed_runs_again_later(
    trains: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []
    for number in range(4):
        slurm = _start(tmp_path, monkeypatch, number)
        JobDir(tmp_path).note("7", "exit", restart=number, rank=0, code=EXIT_STORAGE)
        assert _end(tmp_path, EXIT_STORAGE, trains=trains) == EXIT_STORAGE
        assert slurm.requeued
        waits.append(slurm.commands[-1][-1])
    assert waits == [f"StartTime=now+{seconds}" for seconds in (60, 120, 240, 480)]


@pytest.mark.parametrize(
    ("code", "again"), [(1, False), (2, False), (137, True), (EXIT_LOST, True)]
)
def test_other_commands_run_again_if_they_did_not_fail_by_themselves(
    code: int, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = _start(tmp_path, monkeypatch, 1)
    (tmp_path / "slurm" / "jobs" / "7_0_log.err").write_text("error: /x.npz does not exist\n")
    assert _end(tmp_path, code, trains=False) == code
    assert slurm.requeued is again
    assert _last(tmp_path)["said"] == "/x.npz does not exist", "what was seen is noted"


def test_nothing_that_cannot_be_noted_keeps_a_job_from_its_requeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm = FakeSlurm(monkeypatch)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(JobDir, "note", fail)
    assert _end(tmp_path, EXIT_STORAGE) == EXIT_STORAGE
    assert slurm.requeued
    assert "the end of job 7 could not be noted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [SlurmMissing("scontrol is not on this machine"), SlurmError("access denied")]
)
def test_a_job_that_cannot_be_requeued_from_its_node_is_lost_not_silent(
    error: SlurmError,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    FakeSlurm(monkeypatch)
    _note_exits(tmp_path, EXIT_PREEMPTED)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(batch_end, "run_slurm", fail)
    if isinstance(error, SlurmMissing):
        monkeypatch.setattr(batch_end, "describe", fail)
    for trains, advice in ((True, "`relaywave slurm reconcile"), (False, "submit it again")):
        assert _end(tmp_path, 0, trains=trains) == EXIT_PREEMPTED
        assert _last(tmp_path)["event"] == LOST
        said = capsys.readouterr().err
        assert f"{error}; it is not requeued from here: {advice}" in said
        assert said.count("\n") == 1


@pytest.mark.parametrize(("ranks", "code"), [(2, 0), (3, 143)])
@pytest.mark.parametrize("trains", [True, False])
def test_ranks_that_had_all_finished_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, code: int, trains: bool
) -> None:
    FakeSlurm(monkeypatch)
    jobs = JobDir(tmp_path)
    jobs.note("7", "start", restart=1, images_seen=0, ranks=ranks)
    for rank in range(2):
        jobs.note("7", "exit", restart=1, rank=rank, code=0)
    assert _end(tmp_path, 143, trains=trains) == code


def test_the_starts_of_a_lost_job_count_for_the_one_that_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = JobDir(tmp_path)
    for number in range(4):
        jobs.note("5", "start", restart=number, images_seen=0, ranks=1)
        jobs.note("5", "crash", restart=number, images_seen=0, requeue=True)
    jobs.note("5", LOST, restart=3)
    _start(tmp_path, monkeypatch, 0)
    jobs.note("7", CONTINUES, of="5")
    assert _end(tmp_path, 137) == EXIT_STALLED


TASK = """
import os, signal, sys, time
from pathlib import Path
from models.safe_files.atomic import atomic_file
from slurm.jobs.jobs import noted, run_noted
from slurm.jobs.ranks import Task
from slurm.jobs.records import JobDir
task = Task(0, 0, 1, ("here",), "7", 2)

def work(task):
    for name in sys.argv[2:]:
        with atomic_file(Path(name)) as file:
            file.write(b"x")
    print("works", flush=True)
    {then}

run_noted(task, work)
{after}
"""


def _task(
    root: Path, then: str, *names: str, after: str = "", send: signal.Signals | None = None
) -> tuple[int, dict[str, Any]]:
    """Run a task of job 7 that writes files; returns its exit code and last note."""
    records = root / "slurm" / "jobs"
    records.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_FOLDER": str(records)}
    command = [sys.executable, "-c", TASK.format(then=then, after=after), "-", *names]
    process = subprocess.Popen(
        command, env=environment, cwd=SOURCE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    process.stdout.readline()
    if send is not None:
        process.send_signal(send)
    process.stdout.read()
    process.stdout.close()
    return process.wait(60), _last(root)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_command_that_is_asked_to_stop_notes_what_it_made(
    number: signal.Signals, tmp_path: Path
) -> None:
    names = [str(tmp_path / name) for name in ("a", "b")]
    for expected in (2, 0):  # the second start makes them anew, which is no progress
        code, note = _task(tmp_path, "time.sleep(60)", *names, send=number)
        assert code == EXIT_PREEMPTED
        assert (note["event"], note["restart"], note["code"]) == ("exit", 2, EXIT_PREEMPTED)
        assert (note["said"], note["saved"]) == (number.name, expected)


def test_a_command_on_this_machine_ends_at_once_when_it_is_cancelled(tmp_path: Path) -> None:
    """submitit's handler would ignore the signal, and `slurm cancel` do nothing."""
    command = [sys.executable, "-c", "import signal\nsignal.signal(signal.SIGTERM, print)\n"
               + TASK.format(then="time.sleep(60)", after="")]  # fmt: skip
    environment = {**os.environ, "SUBMITIT_EXECUTOR": "local", "SUBMITIT_FOLDER": str(tmp_path)}
    with subprocess.Popen(command, env=environment, cwd=SOURCE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("then", "code"),
    [("pass", 0), ("sys.exit(2)", 2), ("raise KeyError", 1),
     (f"raise OSError({errno.EIO}, 'Input/output error')", EXIT_STORAGE),
     (f"raise ValueError('unreadable') from OSError({errno.ESTALE}, 'Stale')", EXIT_STORAGE)],
)  # fmt: skip
def test_every_end_of_a_command_is_noted(then: str, code: int, tmp_path: Path) -> None:
    ended, note = _task(tmp_path, then)
    assert (ended, note["code"], note["event"]) == (code, code, "exit")


def test_signals_after_the_work_change_nothing(tmp_path: Path) -> None:
    after = "[os.kill(os.getpid(), n) for n in (signal.SIGUSR2, signal.SIGTERM)]"
    code, note = _task(tmp_path, "pass", after=after)
    assert (code, note["code"]) == (0, 0)


def _note_crash(root: Path, restart: int, host: str) -> None:
    """Note that a rank on one of two nodes was killed, and the end of its batch script."""
    jobs, kept = JobDir(root), "n1" if host != "n1" else "n2"
    both = sorted([kept, host])
    jobs.note("7", "start", restart=restart, images_seen=0, ranks=2, hosts=both)
    jobs.note("7", "exit", restart=restart, rank=both.index(kept), code=EXIT_LOST, host=kept)


def _crash(root: Path, monkeypatch: pytest.MonkeyPatch, restart: int, host: str) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
    _note_crash(root, restart, host)
    assert _end(root, 137, "--max-stalled=99") == 137


def test_a_host_on_which_a_job_crashes_often_is_excluded_at_the_next_requeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm = FakeSlurm(monkeypatch)
    for restart, host in enumerate(["n2", "n1", "n2", "n2"]):
        slurm.job["Restarts"] = str(restart)
        assert slurm.excluded == []
        _crash(tmp_path, monkeypatch, restart, host)
        crash = [a for a in JobDir(tmp_path).attempts("7") if a["event"] == "crash"][-1]
        assert crash["hosts"] == [host]
    assert slurm.excluded == ["n2"]
    assert _last(tmp_path)["event"] == EXCLUDE
    assert "its next starts do without n2" in capsys.readouterr().err
    slurm.job |= {"ExcNodeList": "n2", "Restarts": "4"}
    _crash(tmp_path, monkeypatch, 4, "n1")
    assert slurm.excluded == ["n2"], "not again, and n1 crashed but twice"


@pytest.mark.parametrize(
    ("shown", "site", "excluded"),
    [
        ({}, "", ["n2"]),
        ({"ExcNodeList": "n4"}, "", ["n2,n4"]),
        ({}, "exclude_after = 0", []),
        ({"ReqNodeList": "n1,n2"}, "", []),
        ({"NumNodes": "4-4"}, "", []),
    ],
)
def test_an_unfit_host_is_excluded_at_once_where_the_job_can_do_without(
    shown: dict[str, str], site: str, excluded: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    slurm = FakeSlurm(monkeypatch, **shown)
    (tmp_path / "site.toml").write_text(site)
    monkeypatch.setenv("RELAYWAVE_SITE", str(tmp_path / "site.toml"))
    JobDir(tmp_path).note("7", UNHEALTHY, restart=1, rank=1, host="n2", hosts=["n1", "n2"], why="")
    assert _end(tmp_path, 1) == 1
    assert slurm.requeued
    assert slurm.excluded == excluded


def test_crashes_of_another_day_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm(monkeypatch)
    for _ in range(9):
        JobDir(tmp_path).note("7", "crash", restart=0, requeue=True, hosts=["n2"])
    later = time.time() + hosts.WINDOW + 1
    monkeypatch.setattr(hosts.time, "time", lambda: later)
    assert hosts.unfit_hosts(JobDir(tmp_path).attempts("7"), 3) == []
    assert slurm.excluded == []
