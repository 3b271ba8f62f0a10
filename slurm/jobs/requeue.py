"""Whether a job that stopped is run again, decided from what it noted about its starts.

The decision is made in one place, at the end of its batch script (batch_end.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from models.command_line import check_least
from slurm.jobs.records import JobDir
from slurm.resources import Policy

Cause = Literal["crash", "time limit", "preemption", "signal"]
"""Why a start ended before its job was done."""
LOST = "lost"
"""Event: a job that is to run again could not be requeued from its node."""
CONTINUES = "continues"
"""Event: a job was submitted for one that was lost, `of`; its notes count as earlier ones."""


@dataclass(frozen=True)
class Decision:
    """Whether to run again, why, and after how many seconds."""

    requeue: bool
    why: str
    delay: int = 0


@dataclass(frozen=True)
class Start:
    """A start of a job.

    Attributes:
        saved: Whether it saved anything new.
        cause: Why it ended; "" if its batch script noted nothing: Slurm requeued it itself, after a
            preemption or because a node was lost.
    """

    saved: bool
    cause: Cause | Literal[""]


def starts_of(attempts: Sequence[Mapping[str, Any]], images_seen: int) -> list[Start]:
    """Return the starts of a job from its notes, oldest first.

    Args:
        attempts: Its notes, oldest first; those of jobs that it continues have their `job`.
        images_seen: Images seen of the newest checkpoint; 0 for jobs that have none. Their ranks
            note how many files they made.
    """
    groups: list[list[Mapping[str, Any]]] = []
    newest: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for attempt in attempts:
        if "restart" not in attempt:
            continue
        key = (attempt.get("job", ""), attempt["restart"])
        begun = "start" in [note["event"] for note in newest.get(key, ())]
        again = begun and attempt["event"] == "start"
        if key not in newest or again:  # all starts of a job without Slurm have the number 0
            newest[key] = []
            groups.append(newest[key])
        newest[key].append(attempt)
    began: list[int] = []
    for notes in groups:
        known = next((note["images_seen"] for note in notes if "images_seen" in note), None)
        began.append(known if known is not None else max([0, *began]))
    reached = [*began[1:], images_seen]
    return [
        Start(after > before or any(note.get("saved") for note in notes), _end_of(notes))
        for notes, before, after in zip(groups, began, reached, strict=True)
    ]


def _end_of(notes: Sequence[Mapping[str, Any]]) -> Cause | Literal[""]:
    ends = [note for note in notes if note["event"] in ("crash", "signal")]
    if not ends:
        return ""
    if ends[-1]["event"] == "crash":
        return "crash"
    # notes of older code do not tell which signal it was
    return next((c for c in CAUSES if c == ends[-1].get("cause")), "time limit")


def decide(earlier: Sequence[Start], saved: bool, cause: Cause, policy: Policy) -> Decision:
    """Decide whether a job runs again.

    What does not depend on the job is not counted against it: preemption, a lost node, a signal
    that somebody sent. A start that saved something new begins a new count.

    Args:
        earlier: Its starts before the one that ended now, oldest first.
        saved: Whether that one saved anything new.
        cause: Why it ended.
        policy: The limits.
    """
    causes: list[str] = []
    for start in reversed([*earlier, Start(saved, cause)]):
        if start.saved:
            break
        causes.append(start.cause)
    crashes = causes.count("crash")
    stalled = crashes + causes.count("time limit")
    if cause in ("preemption", "signal"):
        return Decision(True, CAUSES[cause])
    if cause == "crash" and crashes > policy.max_crashes:
        return Decision(False, f"it crashed {crashes} times in a row")
    if stalled >= policy.max_stalled:
        return Decision(False, f"{stalled} starts in a row saved nothing new")
    if cause == "time limit":
        return Decision(True, CAUSES[cause])
    delay = policy.backoff_seconds * 2 ** max(stalled - 1, 0)
    return Decision(True, CAUSES[cause], min(delay, 3600))


CAUSES: Mapping[Cause, str] = {
    "crash": "it crashed",
    "time limit": "asked to stop before the time limit",
    "preemption": "asked to stop for a job of higher priority",
    "signal": "asked to stop by a signal",
}


def history(jobs: JobDir, job_id: str) -> list[dict[str, Any]]:
    """Return the notes of a job, after those of lost jobs that it continues; each has its `job`."""
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    while job_id and job_id not in seen:
        seen.add(job_id)
        notes = jobs.attempts(job_id)
        found = [note | {"job": job_id} for note in notes] + found
        job_id = next((str(n["of"]) for n in notes if n["event"] == CONTINUES and "of" in n), "")
    return found


def was_lost(jobs: JobDir, job_id: str) -> bool:
    """Whether a job that is to run again could once not be requeued from its node."""
    return any(note["event"] == LOST for note in jobs.attempts(job_id))


def was_interrupted(jobs: JobDir, job_id: str) -> bool:
    """Whether a job ended unfinished by preemption, or by being lost after it had saved something.

    That is no failure of what it does.
    """
    ends = [note for note in jobs.attempts(job_id) if note["event"] in ("end", LOST)]
    if not ends or ends[-1]["event"] == "end":
        return bool(ends) and ends[-1].get("state") == "PREEMPTED"
    return bool(ends[-1].get("saved"))


def policy_of(args: argparse.Namespace) -> Policy:
    """Return the limits that a parsed command line sets."""
    return with_budget(Policy(args.max_stalled, args.max_crashes, args.backoff_seconds), args)


def with_budget(policy: Policy, args: argparse.Namespace) -> Policy:
    """Return the limits with what a parsed command line says about the budget."""
    check_least(args, gpu_hours=0)
    if args.gpu_hours is None and args.over_budget is None:
        return policy
    hours = policy.gpu_hours if args.gpu_hours is None else args.gpu_hours
    warns = policy.budget_warns if args.over_budget is None else args.over_budget == "warn"
    return replace(policy, gpu_hours=hours, budget_warns=warns)


def add_budget_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the budget."""
    parser.add_argument(
        "--gpu-hours",
        type=float,
        metavar="N",
        help="budget of a run over all its starts; 0 is none",
    )
    parser.add_argument(
        "--over-budget",
        choices=("stop", "warn"),
        help="what happens when it is used up: the run saves and ends (stop), or continues",
    )


def add_policy_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the limits."""
    default = Policy()
    parser.add_argument(
        "--max-stalled",
        type=int,
        default=default.max_stalled,
        help="stop after this many starts in a row that crash, or reach their time limit, and save"
        f" nothing new ({default.max_stalled})",
    )
    parser.add_argument(
        "--max-crashes",
        type=int,
        default=default.max_crashes,
        help="stop after more than this many crashes in a row that saved nothing new"
        f" ({default.max_crashes})",
    )
    parser.add_argument(
        "--backoff-seconds",
        type=int,
        default=default.backoff_seconds,
        help=f"wait after a crash, doubling while nothing new is saved ({default.backoff_seconds})",
    )
    add_budget_options(parser)
