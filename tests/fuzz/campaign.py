"""Many mutations of a subject, each reproducible from the subject's name and a seed."""

from __future__ import annotations

import importlib
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from models.safe_files import transient
from tests.fuzz.judge import ENDS, Verdict, judge
from tests.fuzz.mutations import Mutation, mutate
from tests.fuzz.sandbox import Outcome, Sandbox
from tests.fuzz.subject import Subject

SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Report:
    """What the mutations of a subject led to."""

    subject: str
    counts: Counter[str] = field(default_factory=Counter)
    escapes: dict[int, str] = field(default_factory=dict)

    def row(self) -> str:
        cells = "".join(f"{self.counts[end]:10,}" for end in ENDS)
        return f"{self.subject:28}{sum(self.counts.values()):10,}{cells}"


HEADER = f"{'subject':28}{'mutations':>10}{''.join(f'{end:>10}' for end in ENDS)}"


class Campaign:
    """Trees of subjects, made once, and the sandbox of this process."""

    def __init__(self) -> None:
        transient.DELAYS = (0.0, 0.0, 0.0)  # in this process, which only fuzzes
        parent = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        self._temporary = tempfile.TemporaryDirectory(prefix="fuzz-", dir=parent)
        self._base = Path(self._temporary.name)
        self.sandbox = Sandbox(self._base / "sandbox")
        self.sandbox.enter()
        self._trees: dict[object, Path] = {}
        self._baselines: dict[str, Outcome] = {}

    def close(self) -> None:
        """Remove everything."""
        self._temporary.cleanup()

    def fuzz(self, subject: Subject, seeds: Iterable[int]) -> Report:
        """Try the mutations of these seeds."""
        report = Report(subject.name)
        for seed in seeds:
            mutation, verdict, _ = self.once(subject, seed)
            report.counts[verdict.end] += 1
            if verdict.end == "escape":
                report.escapes[seed] = f"{mutation}: {verdict.why}"
        return report

    def once(self, subject: Subject, seed: int) -> tuple[Mutation, Verdict, Outcome]:
        """Try one mutation."""
        tree, other = self._tree(subject, 0), self._tree(subject, 1)
        baseline = self.baseline(subject)
        sandbox = self.sandbox
        sandbox.fill(tree)
        files = subject.mutable(sandbox.tree)
        rng = random.Random(f"{subject.name}/{seed}")
        mutation = mutate(rng, files, sandbox.tree, other, sandbox.aside)
        before = sandbox.state()
        outcome = sandbox.run(subject.probe)
        verdict = judge(subject, mutation, baseline, outcome, before, sandbox.state(), files)
        return mutation, verdict, outcome

    def baseline(self, subject: Subject) -> Outcome:
        """Return the outcome without a mutation; import for good what the probe imported.

        Raises:
            AssertionError: The probe rejects the valid tree.
        """
        if subject.name not in self._baselines:
            self.sandbox.fill(self._tree(subject, 0))
            outcome = self.sandbox.run(subject.probe, list_modules=True)
            assert outcome.code == 0, f"{subject.name}: {outcome.err}{outcome.crash}"
            assert outcome.result, f"{subject.name} delivers nothing"
            _import(outcome.modules)
            self._baselines[subject.name] = outcome
        return self._baselines[subject.name]

    def _tree(self, subject: Subject, number: int) -> Path:
        """Return a valid tree of a subject, made in a process of its own."""
        key = (subject.make, number)
        if key not in self._trees:
            path = self._base / f"valid-{len(self._trees)}"
            empty = self._base / "empty"
            empty.mkdir(exist_ok=True)
            self.sandbox.fill(empty)

            def make(tree: Path) -> dict[str, str]:
                subject.make(path, number)
                return {"made": ""}

            outcome = self.sandbox.run(make, list_modules=True)
            assert outcome.code == 0, f"{subject.name} cannot be made: {outcome.err}{outcome.crash}"
            self._trees[key] = path
        return self._trees[key]


def _import(names: Iterable[str]) -> None:
    """Import modules in this process, so that no probe has to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            if name not in sys.modules and not name.startswith(("__", "tests.")):
                try:
                    importlib.import_module(name)
                except Exception:  # aliases, and parts of packages that import in an order
                    continue
