"""All subjects by name."""

from __future__ import annotations

from tests.fuzz.subject import Subject
from tests.fuzz.subjects import models, packed, sources

SUBJECTS: dict[str, Subject] = {
    subject.name: subject for subject in (*packed.SUBJECTS, *sources.SUBJECTS, *models.SUBJECTS)
}
