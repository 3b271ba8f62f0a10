"""When a run trained, on how many ranks, and how much of that time was progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dist_train.runtime.events import Event, read_events
from slurm.jobs.records import JobDir
from slurm.jobs.throughput import RATE, productive_seconds


@dataclass(frozen=True)
class Mark:
    """Something on the time axis of a run.

    Attributes:
        kind: What happened.
        time: Unix seconds.
        images_seen: Where training continued or stopped.
        ranks: Of a start, the number of processes.
        why: What is known of the reason.
    """

    kind: Literal["start", "roll_back", "end"]
    time: float
    images_seen: int
    ranks: int = 0
    why: str = ""


@dataclass(frozen=True)
class History:
    """The marks of a run, and what follows from them.

    Attributes:
        marks: In order of time.
        hours: Hours since the first start, for each line of the metrics. Runs that recorded no
            starts have the hours of their steps, without what lay between.
        sessions_seconds: Seconds of all processes that trained; None if that is not known.
        is_bound: Whether a process ended without a note, so that its end is not known: it is
            counted until its last line, and the seconds are the least that it can have been.
        rank_hours: The same in hours, times ranks.
        productive: Seconds of the steps that count.
    """

    marks: tuple[Mark, ...]
    hours: tuple[float, ...]
    sessions_seconds: float | None
    is_bound: bool
    rank_hours: float | None
    productive: float

    @property
    def restarts(self) -> int | None:
        """Starts after the first; None if none is recorded."""
        starts = sum(mark.kind == "start" for mark in self.marks)
        return starts - 1 if starts else None

    @property
    def goodput(self) -> float | None:
        """Fraction of the time of all processes that was progress."""
        if not self.sessions_seconds:
            return None
        return min(self.productive / self.sessions_seconds, 1.0)


def read_history(run_dir: Path, lines: Sequence[Mapping[str, Any]], now: float | None) -> History:
    """Return the history of a run.

    Jobs note more than the run itself: their set-up, and why they ended. Both are on the axis.

    Args:
        run_dir: The run directory.
        lines: Its metrics.
        now: Unix seconds if it is running, else None.
    """
    own = [_mark(event) for event in read_events(run_dir)]
    jobs = _job_marks(JobDir(run_dir))
    clock = [m for m in own if m.kind != "end"] or [m for m in jobs if m.kind == "start"]
    times = _times(lines, clock)
    sessions, is_bound = _sessions(jobs or own, times, now)
    seconds = sum(end - mark.time for mark, end in sessions)
    rank_seconds = sum((end - mark.time) * mark.ranks for mark, end in sessions)
    jobs = [_placed(mark, lines, times) for mark in jobs]
    shown = [*jobs, *(mark for mark in own if mark.kind == "roll_back")] if jobs else own
    marks = tuple(sorted(shown, key=lambda mark: mark.time))
    first = marks[0].time if marks else 0.0
    return History(
        marks=marks,
        hours=tuple((time - first) / 3600 for time in times),
        sessions_seconds=seconds if sessions else None,
        is_bound=is_bound,
        rank_hours=rank_seconds / 3600 if sessions else None,
        productive=productive_seconds(lines),
    )


def _placed(mark: Mark, lines: Sequence[Mapping[str, Any]], times: Sequence[float]) -> Mark:
    """Return an end with the images seen by then, which jobs do not always note."""
    if mark.kind != "end" or mark.images_seen:
        return mark
    seen = [n["images_seen"] for n, at in zip(lines, times, strict=True) if at <= mark.time]
    return replace(mark, images_seen=seen[-1] if seen else 0)


def _mark(event: Event) -> Mark:
    return Mark(event.event, event.time, event.images_seen, event.ranks, event.why)


def _job_marks(jobs: JobDir) -> list[Mark]:
    """Return starts and ends of training jobs; of the ends of several ranks, the last."""
    marks: list[Mark] = []
    for record in jobs.records():
        if record.kind != "train":
            continue
        for job_id in record.task_ids:
            marks += _attempt_marks(jobs.attempts(job_id))
    return sorted(marks, key=lambda mark: mark.time)


def _attempt_marks(attempts: Sequence[Mapping[str, Any]]) -> list[Mark]:
    marks: list[Mark] = []
    for attempt in attempts:
        time, seen = float(attempt["time"]), int(attempt.get("images_seen", 0))
        if attempt["event"] == "start":
            marks.append(Mark("start", time, seen, int(attempt.get("ranks", 0))))
        elif attempt["event"] in ("exit", "signal", "crash"):
            why = ": ".join(filter(None, (attempt.get("why"), attempt.get("said"))))
            if marks and marks[-1].kind == "end":
                last = marks.pop()
                why, seen = why or last.why, seen or last.images_seen
            marks.append(Mark("end", time, seen, why=why))
    return marks


def _times(lines: Sequence[Mapping[str, Any]], clock: Sequence[Mark]) -> list[float]:
    """Return when each interval ended: the start that it belongs to, and its steps since then.

    A line belongs to the newest start before it in images seen: later starts have cut off what was
    behind them.
    """
    times: list[float] = []
    previous, before, elapsed = None, 0, 0.0
    for line in lines:
        seen = line["images_seen"]
        found = [mark for mark in clock if mark.images_seen < seen]
        start = max(found, key=lambda mark: mark.time, default=None)
        if start is not previous:
            previous, elapsed = start, 0.0
            before = max(before, start.images_seen) if start else before
        elapsed += (seen - before) / line[RATE] if line.get(RATE) else 0.0
        times.append((start.time if start else 0.0) + elapsed)
        before = seen
    return times


def _sessions(
    marks: Sequence[Mark], times: Sequence[float], now: float | None
) -> tuple[list[tuple[Mark, float]], bool]:
    """Return each start with the time when it ended, and whether one of these is not known."""
    starts = [mark for mark in marks if mark.kind == "start"]
    sessions, is_bound = [], False
    for number, start in enumerate(starts):
        following = starts[number + 1].time if number + 1 < len(starts) else None
        ends = [
            mark.time
            for mark in marks
            if mark.kind == "end" and start.time <= mark.time <= (following or mark.time)
        ]
        if ends:
            end = max(ends)
        elif following is None and now is not None:
            end = now
        else:
            is_bound = True
            last = [time for time in times if start.time <= time <= (following or time)]
            end = max(last, default=start.time)
        sessions.append((start, max(end, start.time)))
    return sessions, is_bound
