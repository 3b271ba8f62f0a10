"""Whether what happened is right."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutations import Mutation
from tests.fuzz.sandbox import MEGABYTES, SECONDS, Outcome
from tests.fuzz.subject import Difference, Subject

BESIDE = re.compile(r"[\w ]+: \d+/\d+ images, |.*; the file is skipped$")
"""What may be printed before the one line: progress, and what was passed over."""
State = dict[str, tuple[object, ...]]
ENDS = ("rejected", "skipped", "identical", "forged", "escape")
"""What a mutation may lead to; `forged` files have a matching checksum, and another result."""


@dataclass(frozen=True)
class Verdict:
    end: str
    why: str = ""


def judge(
    subject: Subject,
    mutation: Mutation,
    baseline: Outcome,
    outcome: Outcome,
    before: State,
    after: State,
    files: list[str],
) -> Verdict:
    """Judge a probe of a mutated tree.

    Args:
        subject: What was read.
        mutation: What was done to it.
        baseline: The outcome without it.
        outcome: The outcome with it.
        before: What lay in the sandbox before the probe.
        after: What lies there now.
        files: Files of the tree, whose names a rejection may use.
    """
    problem = _harm(outcome) or _traces(subject, outcome, before, after)
    if problem:
        return Verdict("escape", problem)
    if outcome.code:
        problem = _not_one_line(outcome, mutation, files)
        return Verdict("escape", problem) if problem else Verdict("rejected", outcome.err.strip())
    if outcome.result == baseline.result:
        return Verdict("identical")
    difference = Difference(
        mutation, baseline.result, outcome.result, outcome.out + outcome.err + outcome.log
    )
    if mutation.forged:
        return Verdict("forged")
    if subject.legal(difference):
        return Verdict("skipped", (outcome.err + outcome.log).strip())
    changed, added = difference.changed, difference.added
    return Verdict(
        "escape",
        f"silent difference: {len(changed)} changed ({', '.join(changed[:4])}),"
        f" {len(added)} added ({', '.join(added[:4])}); said: {difference.said[-1000:]!r}",
    )


def _harm(outcome: Outcome) -> str | None:
    if outcome.crash:
        return outcome.crash
    if "Traceback (most recent call last)" in outcome.out + outcome.err:
        return f"traceback in the output: {outcome.out + outcome.err}"
    if outcome.seconds > SECONDS:
        return f"it took {outcome.seconds:.1f} s"
    if outcome.megabytes > MEGABYTES:
        return f"it took {outcome.megabytes:.0f} MB"
    if outcome.wrote:
        return f"it wrote outside: {outcome.wrote[:5]}"
    return None


def _traces(subject: Subject, outcome: Outcome, before: State, after: State) -> str | None:
    """Return what a probe changed and should have left as it was."""
    changed = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    free = {"out"} if subject.caches or not outcome.code else set()
    if subject.writes and not outcome.code:
        free.add("tree")
    changed = [name for name in changed if Path(name).parts[0] not in free]
    return f"changed on disk (exit {outcome.code}): {changed[:6]}" if changed else None


def _not_one_line(outcome: Outcome, mutation: Mutation, files: list[str]) -> str | None:
    said = outcome.err.splitlines()
    line = "\n".join(text for text in said if not BESIDE.match(text))
    if outcome.code != 2:
        return f"exit code {outcome.code}: {line!r}"
    if not line or not line.isprintable():
        return f"rejected, but not in one printable line: {line[:2000]!r}"
    if len(line) > 2000:
        return f"a line of {len(line)} characters: {line[:300]!r}..."
    paths = [Path(file) for file in (mutation.file, *files)]
    names = {name for path in paths for name in (path.name, path.parent.name, str(path))} - {""}
    if not any(name in line + outcome.out for name in names):
        return f"rejected without naming the file: {line!r}"
    if "memory" in line.lower():
        return f"rejected for want of memory: {line!r}"
    return None
