"""How jobs that have left the queue ended, and in one line why.

State and exit code come from Slurm's accounting; the reason is what the job itself noted or printed
last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from slurm.jobs.records import JobDir, JobRecord
from slurm.jobs.requeue import LOST
from slurm.log_lines import without_time
from slurm.slurm_cli import SlurmError, accounting, have_slurm, seconds_of

REASONS = (
    re.compile(
        r"(?:dist_train|slurm|error|not run again): (?P<said>.+)"  # the one line of our commands
        r"|(?P<raised>[A-Za-z_][\w.]*(?:Error|Exception|Corrupt|Unreachable)(?:: .+)?)"
    ),
    re.compile(
        r"(?:srun|slurmstepd\S*): error: (?P<slurm>.*(?:Killed|[Kk]ill event|Segmentation|Aborted"
        r"|Bus error|DUE TO (?!JOB REQUEUE)).*)"
    ),
)
"""Lines of a log that say why a job ended: its own, or else Slurm's, which any failure adds."""
START = re.compile(r"start \d+ of job \S+")
"""The first line that a restarted rank prints (slurm.jobs.ranks.enter_rank)."""
TAIL = 1 << 16
"""How many bytes of a log are searched, from its end."""


def exit_states(records: Iterable[JobRecord]) -> dict[str, tuple[str, str]]:
    """Return {job id: (state, exit code)} of jobs' last starts; nothing without accounting."""
    try:
        rows = accounting_of(records, ("State", "ExitCode")) if have_slurm() else []
    except SlurmError:
        return {}
    return {row["JobID"]: (row["State"].split()[0], exit_code(row["ExitCode"])) for row, _ in rows}


def accounting_of(
    records: Iterable[JobRecord], fields: Sequence[str]
) -> list[tuple[dict[str, str], JobRecord]]:
    """Return sacct's rows of jobs, each with its job: one for each time that it ran.

    Rows of other jobs that have had one of the ids are left out.

    Args:
        records: The jobs.
        fields: What a row has beside `JobID`, `Submit` and `JobName`.
    """
    by_id = {job_id: record for record in records for job_id in record.task_ids}
    ids = (record.job_id for record in by_id.values())
    rows = accounting(ids, ("JobID", "Submit", *fields, "JobName"))
    found = [(row, by_id[row["JobID"]]) for row in rows if row["JobID"] in by_id]
    return [(row, record) for row, record in found
            if record.is_of(row["JobName"], seconds_of(row["Submit"]))]  # fmt: skip


def exit_code(text: str) -> str:
    """Return `2` or `signal 9` of sacct's `2:0` or `0:9`, "" of success."""
    code, _, number = text.partition(":")
    if number not in ("", "0"):
        return f"signal {number}"
    return "" if code == "0" else code


def exit_reason(jobs: JobDir, record: JobRecord, job_id: str) -> str:
    """Return why a job failed, "" if the reason is unknown."""
    ends = ("exit", "crash", "signal", LOST)
    exits = [a for a in jobs.attempts(job_id) if a["event"] in ends]
    last = exits[-1] if exits else {"event": ""}
    given_up = last["event"] in ("crash", "signal") and not last.get("requeue", True)
    final = last["event"] in ("exit", LOST) or given_up
    if final and last.get("why"):
        return ": ".join(filter(None, (last["why"], last.get("said"))))
    return reason_in_logs(Path(record.logs), job_id)


def reason_in_logs(logs: Path, job_id: str) -> str:
    """Return the last line of a job's logs that says why it ended, "" if none does."""
    printed = [_since_its_start(path) for path in error_logs(logs, job_id)]
    for reason in REASONS:
        for lines in printed:
            matches = [match for line in lines if (match := reason.fullmatch(line))]
            if matches:
                return next(text for text in matches[-1].groups() if text)
    return ""


def _since_its_start(path: Path) -> list[str]:
    """Return the last lines that a rank printed since its newest start."""
    with open(path, "rb") as file:
        file.seek(max(path.stat().st_size - TAIL, 0))
        printed = file.read().decode(errors="replace").splitlines()
    lines = [without_time(line) for line in printed]
    starts = [number for number, line in enumerate(lines) if START.fullmatch(line)]
    return [line.strip() for line in lines[starts[-1] if starts else 0 :]]


def error_logs(logs: Path, job_id: str) -> list[Path]:
    """Return the files that a job's tasks printed errors to, rank 0's first."""
    found = [path for path in logs.glob(f"{job_id}_*_log.err") if _rank(path, job_id).isdigit()]
    return sorted(found, key=lambda path: int(_rank(path, job_id)))


def _rank(path: Path, job_id: str) -> str:
    return path.name.removeprefix(f"{job_id}_").partition("_")[0]


def log_of(record: JobRecord, job_id: str) -> str:
    """Return the log to look at first: rank 0's errors, else the directory of logs."""
    return str(next(iter(error_logs(Path(record.logs), job_id)), record.logs))


def succeeded(state: str) -> bool:
    """Whether a state of sacct is no failure: completed, or unknown."""
    return state in ("", "COMPLETED")


def format_exit(state: str, code: str, why: str) -> str:
    """Return how a job ended as one line."""
    text = state + (f", exit code {code}" if code and not code.startswith("signal") else "")
    text += f", {code}" if code.startswith("signal") else ""
    return text + (f": {why}" if why else "")


def task_exits(
    jobs: JobDir, record: JobRecord, states: Mapping[str, tuple[str, str]]
) -> tuple[str, str]:
    """Return the states of a job's failed tasks, and why the first of them failed."""
    failed = [task for task in record.task_ids if not succeeded(states.get(task, ("", ""))[0])]
    if not failed:
        return "", ""
    kinds = sorted({states[task][0].lower() for task in failed})
    return ", ".join(kinds), exit_reason(jobs, record, failed[0])
