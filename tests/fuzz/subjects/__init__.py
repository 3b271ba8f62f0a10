"""All subjects by name."""

from __future__ import annotations

from tests.fuzz.subject import Subject
from tests.fuzz.subjects import evaluations, jobs, models, packed, runs, sources

SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for module in (packed, sources, models, runs, evaluations, jobs)
    for subject in module.SUBJECTS
}
