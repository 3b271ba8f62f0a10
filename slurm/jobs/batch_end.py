"""The end of every batch script: what was seen is noted, and the job is requeued if it is to be.

    python -m slurm.jobs.batch_end DIR EXIT_CODE

It runs on the node itself, where Slurm's commands are: the tasks may run in a container without
them, and only leave notes. At a signal (time limit, preemption, `scancel --signal`) they save what
they have and note EXIT_PREEMPTED; of a crash (a killed rank, out of memory, a lost connection)
there is srun's exit code. requeue.py decides.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from models import command_line
from models.command_line import (
    EXIT_DIVERGED,
    EXIT_LOST,
    EXIT_PREEMPTED,
    EXIT_REJECTED,
    EXIT_STALLED,
    EXIT_STORAGE,
    say,
)
from models.config_io import ConfigError
from slurm.jobs.budget import budget_problem, gpu_hours
from slurm.jobs.exit_reason import reason_in_logs
from slurm.jobs.hosts import EXCLUDE, crashed_hosts, exclude, unfit_hosts
from slurm.jobs.jobs import STOP, TrainJob
from slurm.jobs.notify import notify
from slurm.jobs.ranks import own_job_id
from slurm.jobs.records import JobDir, images_saved
from slurm.jobs.requeue import (
    LOST,
    Cause,
    Decision,
    add_policy_options,
    decide,
    history,
    policy_of,
    starts_of,
)
from slurm.log_lines import time_lines
from slurm.resources import Policy
from slurm.site import Site, read_site
from slurm.slurm_cli import SlurmError, SlurmMissing, accounting, describe, run_slurm, settings

FINAL = frozenset({EXIT_REJECTED, EXIT_DIVERGED, EXIT_STALLED})
"""Exit codes that another start would not change."""
KILLED = 128
"""Exit codes from here on are of tasks that a signal ended by force."""
PATIENCE = 600.0
"""Seconds to wait for slurmctld: it may be restarting."""
LATE = 60
"""Seconds by which Slurm's signal before the time limit may come early."""


@dataclass(frozen=True)
class End:
    """The end of a start of a job.

    Attributes:
        jobs: The jobs of the directory that has the notes.
        job_id: The job.
        restart: The number of the start, from 0.
        code: Exit code of its tasks, as srun has it.
        trains: Whether it trains the run of this directory; else it is another command.
        signal_seconds: How long before the time limit Slurm asks it to stop.
        policy: The limits of running it again.
        site: The site profile.
    """

    jobs: JobDir
    job_id: str
    restart: int
    code: int
    trains: bool
    signal_seconds: int
    policy: Policy
    site: Site

    def settle(self) -> int:
        """Note the end, and requeue the job if it is to run again; returns its exit code."""
        attempts = history(self.jobs, self.job_id)
        ours = self._own(attempts)
        exits = {int(a["rank"]): a for a in ours if a["event"] == "exit"}
        final = self._final_code(exits, ours)
        if final is not None:
            said = reason_in_logs(self.jobs.records_dir, self.job_id) if final else ""
            self._note("end", code=final, said=said)
            self._tell_end(final, said)
            return final
        try:
            job, unreachable = self._ask(), ""
        except SlurmError as error:
            job, unreachable = {}, str(error)
        if job and not _may_requeue(job, self.restart):
            state = "PREEMPTED" if _was_preempted(job) else job.get("JobState", "")
            requeued = job.get("Restarts") != str(self.restart)
            why = "Slurm has requeued it" if requeued else "it was cancelled, or ended by Slurm"
            self._note("end", code=self.code, state=state, why=why)
            print(f"exit code {self.code}: {why}", file=sys.stderr)
            return self.code
        return self._decide(self._cause(job, self._was_stopped(exits)), attempts, unreachable)

    def _own(self, attempts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the notes of this start."""
        return [a for a in attempts if (a["job"], a.get("restart")) == (self.job_id, self.restart)]

    def _final_code(
        self, exits: Mapping[int, Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]
    ) -> int | None:
        """Return the exit code of an end that is for good, None of any other."""
        codes = [int(exit["code"]) for exit in exits.values()]
        final = [code for code in codes if code in FINAL]
        if final:
            return final[0]
        if self.trains and ((self.jobs.slurm_dir / STOP).exists() or self._is_trained()):
            return 0
        starts = [a for a in ours if a["event"] == "start"]
        if starts and len(exits) == starts[-1].get("ranks") and not any(codes):
            if self.code:
                print(f"exit code {self.code}, but all ranks had finished", file=sys.stderr)
            return 0
        if EXIT_PREEMPTED in codes:
            return None
        again = self.trains or self.code in (EXIT_STORAGE, EXIT_PREEMPTED, EXIT_LOST)
        if self.code and (again or self.code >= KILLED):
            return None
        return self.code  # another command that failed by itself would fail again

    def _is_trained(self) -> bool:
        try:
            return TrainJob(self.jobs.root).trained()
        except (OSError, ValueError) as error:  # then it is not known to be
            say(str(error), "note")
            return False

    def _was_stopped(self, exits: Mapping[int, Mapping[str, Any]]) -> bool:
        """Whether the job was asked to stop, and no rank failed before that.

        When a rank fails, srun ends the others by SIGTERM, which they note like any other stop.
        """
        stopped = [exit for exit in exits.values() if exit["code"] == EXIT_PREEMPTED]
        if self.code == KILLED + signal.SIGUSR2 or any(e.get("said") == "SIGUSR2" for e in stopped):
            return True
        codes = {self.code, *(int(exit["code"]) for exit in exits.values())}
        return EXIT_PREEMPTED in codes and codes <= {0, EXIT_PREEMPTED}

    def _ask(self) -> dict[str, str]:
        """Return what slurmctld knows of the job. Raises SlurmError if it does not answer."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                job = describe(self.job_id)
                return job | _preemption_of(self.job_id, job)
            except SlurmMissing:
                raise
            except SlurmError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(2.0)

    def _cause(self, job: Mapping[str, str], stopped: bool) -> Cause:
        """Return why a start ended; if Slurm does not answer, what counts against the job."""
        if _was_preempted(job):
            return "preemption"
        if job.get("Reason") == "TimeLimit":
            return "time limit"
        if not stopped:
            return "crash"
        since_end = _seconds_since(job.get("EndTime", ""))
        late = since_end is None or -since_end < self.signal_seconds + LATE
        return "time limit" if late else "signal"

    def _decide(self, cause: Cause, attempts: Sequence[Mapping[str, Any]], unreachable: str) -> int:
        images_seen = images_saved(self.jobs.root) if self.trains else 0
        now = {"event": "now", "job": self.job_id, "restart": self.restart,
               "images_seen": images_seen}  # fmt: skip
        *earlier, last = starts_of([*attempts, now], images_seen)
        decision = self._within_budget(decide(earlier, last.saved, cause, self.policy))
        facts: dict[str, Any] = {"cause": cause, "images_seen": images_seen, "code": self.code,
                                 "requeue": decision.requeue, "why": decision.why}  # fmt: skip
        if cause == "crash":
            said = reason_in_logs(self.jobs.records_dir, self.job_id)
            self._note("crash", **facts, said=said, hosts=crashed_hosts(self._own(attempts)))
        else:
            self._note("signal", **facts, said="")
        if not decision.requeue:
            say(decision.why, "not run again")
            notify(self.site, "stopped", self.jobs.root, f"job {self.job_id}: {decision.why}")
            return EXIT_STALLED
        code = self.code or EXIT_PREEMPTED
        try:
            if unreachable:
                raise SlurmError(unreachable)
            run_slurm(["scontrol", "requeue", self.job_id])
        except SlurmError as error:
            self._note(LOST, code=code, why=str(error), delay=decision.delay, saved=int(last.saved))
            reconcile = f"`relaywave slurm reconcile {self.jobs.root}` on a login node"
            later = f"{reconcile} submits it again" if self.trains else "submit it again to resume"
            say(f"{error}; it is not requeued from here: {later}", "note")
            notify(self.site, "lost", self.jobs.root, f"job {self.job_id}: {error}; {later}")
            return code
        again = " again" + (f" in {decision.delay} s" if decision.delay else "")
        print(f"exit code {code}: {decision.why}; runs{again}", file=sys.stderr)
        self._delay(decision.delay)
        self._exclude_hosts()
        restore_time_limit(self.jobs, self.job_id)
        if cause == "crash":
            notify(self.site, "crashed", self.jobs.root, f"job {self.job_id} crashed, runs{again}")
        return code

    def _within_budget(self, decision: Decision) -> Decision:
        """Return what is decided, unless the run's budget is used up."""
        if not (self.trains and decision.requeue and self.policy.gpu_hours):
            return decision
        problem = budget_problem(self.policy, gpu_hours(self.jobs, self.job_id))
        return Decision(False, problem) if problem and not self.policy.budget_warns else decision

    def _tell_end(self, code: int, said: str) -> None:
        """Tell people that a run is trained, or that a job failed."""
        if code:
            why = said or f"exit code {code}"
            notify(self.site, "failed", self.jobs.root, f"job {self.job_id}: {why}")
        elif self.trains:
            notify(self.site, "finished", self.jobs.root, f"job {self.job_id} is done")

    def _delay(self, seconds: int) -> None:
        """Let the next start wait, at least until Slurm has killed what is left of this one.

        Slurm signals a job by its id: a kill of this start that is still due (KillWait seconds
        after its first) would reach the next one.
        """
        with suppress(SlurmError, ValueError):
            wait = max(seconds, int(settings().get("KillWait", "30").split()[0]) + 1)
            already = _seconds_since(describe(self.job_id).get("EligibleTime", ""))
            if already is None or -already < wait:
                start = f"StartTime=now+{wait}"
                run_slurm(["scontrol", "update", f"JobId={self.job_id}", start])

    def _exclude_hosts(self) -> None:
        """Let the next start do without hosts that are unfit, or on which the job often crashed."""
        unfit = unfit_hosts(history(self.jobs, self.job_id), self.site.exclude_after)
        try:
            excluded = exclude(self.job_id, unfit) if unfit else []
        except SlurmError as error:
            say(f"{', '.join(unfit)} could not be excluded: {error}", "note")
            return
        if excluded:
            self._note(EXCLUDE, hosts=excluded)
            say(f"its next starts do without {', '.join(excluded)}", "note")

    def _note(self, event: str, **facts: Any) -> None:
        try:
            self.jobs.note(self.job_id, event, restart=self.restart, **facts)
        except OSError as error:  # what is to be done is done nevertheless
            say(f"the end of job {self.job_id} could not be noted: {error}", "note")


def _may_requeue(job: Mapping[str, str], restart: int) -> bool:
    """Whether a job is ours to requeue: Slurm has not, and the user has not cancelled it."""
    stopped = job.get("Reason") == "TimeLimit" or _was_preempted(job)
    runs = job.get("JobState") == "RUNNING" or stopped
    return runs and job.get("Restarts") == str(restart)


def _preemption_of(job_id: str, job: Mapping[str, str]) -> dict[str, str]:
    """Return the time of a preemption of which only accounting knows.

    Gang scheduling ends a job of a partition with PreemptMode=CANCEL, and notes no PreemptTime.
    """
    if job.get("JobState") != "COMPLETING" or _was_preempted(job):
        return {}
    with suppress(SlurmError):  # without accounting it counts as cancelled
        rows = accounting([job_id], ("State",))
        if rows and rows[-1]["State"] == "PREEMPTED":
            return {"PreemptTime": job.get("EndTime", "")}
    return {}


def _was_preempted(job: Mapping[str, str]) -> bool:
    """Whether Slurm has preempted this start of a job."""
    since = _seconds_since(job.get("PreemptTime", ""))
    began = _seconds_since(job.get("StartTime", ""))
    return since is not None and (began is None or since <= began)


def _seconds_since(text: str) -> float | None:
    """Return how long ago a time was, as scontrol writes it; None of `None` or `Unknown`."""
    try:
        return time.time() - datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def restore_time_limit(jobs: JobDir, job_id: str) -> None:
    """Give a requeued job its full time limit again, which Slurm may have shortened (`--time-min`).

    Otherwise every later start would have the short one.
    """
    records = [r for r in jobs.records() if r.job_id == job_id and r.resources.min_minutes]
    with suppress(SlurmError):  # it was cancelled instead, or slurmctld is down
        for record in records:
            limit = f"TimeLimit={record.resources.minutes}"
            run_slurm(["scontrol", "update", f"JobId={job_id}", limit])


def main(arguments: Sequence[str] | None = None) -> int:
    """Settle the end of a batch script; returns the job's exit code."""
    return command_line.run(lambda: _end(_parser().parse_args(arguments)).settle())


def _end(options: argparse.Namespace) -> End:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm sends it at the requeue
    return End(
        jobs=JobDir(options.root), job_id=own_job_id(), code=options.code, trains=options.trains,
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        signal_seconds=options.signal_seconds, policy=policy_of(options), site=_site(),
    )  # fmt: skip


def _site() -> Site:
    """Return the site profile of the submission; the defaults where nodes cannot read it."""
    try:
        return read_site()
    except ConfigError as error:
        say(f"{error}; its defaults hold at the end of this job", "note")
        return Site()


def end_command(
    python: str, root: str, *, trains: bool, signal_seconds: int, policy: Policy
) -> str:
    """Return the command that settles the end of a batch script; $code is that of its tasks.

    Args:
        python: The command of Python, for a shell.
        root: The directory whose `slurm/` has the job's notes, for a shell.
        trains: As in `End`, and so are the others.
        signal_seconds: Likewise.
        policy: Likewise.
    """
    return (
        f"{python} -m slurm.jobs.batch_end {root} $code{' --trains' if trains else ''}"
        f" --signal-seconds {signal_seconds}"
        f" --max-stalled {policy.max_stalled} --max-crashes {policy.max_crashes}"
        f" --backoff-seconds {policy.backoff_seconds}"
        # older code does not know these, and its submissions had none
        f"{f' --gpu-hours {policy.gpu_hours:g}' if policy.gpu_hours else ''}"
        f"{' --over-budget warn' if policy.budget_warns else ''}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slurm.jobs.batch_end", description=__doc__)
    parser.add_argument("root", type=Path, help="directory whose slurm/ has the job's notes")
    parser.add_argument("code", type=int, help="exit code of the job's tasks")
    parser.add_argument("--trains", action="store_true", help="it trains the run in this directory")
    parser.add_argument("--signal-seconds", type=int, default=120)
    add_policy_options(parser)
    return parser


if __name__ == "__main__":
    time_lines()
    sys.exit(main())
