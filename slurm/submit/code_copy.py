"""A copy of the code and its plugins beside the records of jobs: they run what was submitted.

Copies are named by a digest of their content, so that jobs of unchanged code share one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from models import plugins
from models.config_io import ConfigError
from models.safe_files.atomic import atomic_directory
from slurm.jobs.interpreter import SOURCE

PACKAGES = ("models", "data_pipelines", "dist_train", "evaluation", "slurm", plugins.COPIES)
MODULES = ("relaywave.py",)
"""Modules beside the packages, where they exist."""
ENTRIES = (Path("slurm", "jobs", "jobs.py"), Path("slurm", "jobs", "batch_end.py"))
"""Files that a job starts and ends in: what is submitted today can run only code that has them."""


def copy_code(slurm_dir: Path, source: Path = SOURCE) -> Path:
    """Copy the present code below `slurm_dir`, unless it is there, and return the copy.

    Raises:
        ConfigError: The copy is there, but was changed.
    """
    copy = code_dir(slurm_dir, source)
    if copy.exists():
        _check_unchanged(copy)
        return copy
    with atomic_directory(copy, _is_unchanged, "the code of jobs") as temporary:
        for file, content in _contents(source).items():
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            (temporary / file).write_bytes(content)
    return copy


def code_dir(slurm_dir: Path, source: Path = SOURCE) -> Path:
    """Return the directory that the present code is, or would be, copied to."""
    return slurm_dir / "code" / code_digest(source)


def check_code(copy: Path) -> None:
    """Check that a job that is submitted now can run the code of an earlier submission.

    Raises:
        ConfigError: The copy is gone or was changed, or its modules have other names than today's.
    """
    if not all((copy / entry).exists() for entry in ENTRIES):
        problem = "has the modules of an older version" if copy.exists() else "does not exist"
        raise ConfigError(
            f"the code of the last submission, {copy}, {problem}; add --update-code to run the"
            " present code"
        )
    _check_unchanged(copy)


def _check_unchanged(copy: Path) -> None:
    if not _is_unchanged(copy):
        raise ConfigError(
            f"{copy} is not what its name says: files of this copy of the code, which jobs run,"
            " were changed; remove it if no job needs it, then submit with --update-code"
        )


def _is_unchanged(copy: Path) -> bool:
    return code_digest(copy) == copy.name


def code_digest(source: Path = SOURCE) -> str:
    """Return a digest of the names and contents of our packages and the plugins with them."""
    digest = hashlib.sha256()
    for file, content in sorted(_contents(source).items()):
        digest.update(f"{file}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def _contents(source: Path) -> dict[Path, bytes]:
    """Return the files of a copy, or of the running code with the plugins of this process."""
    own = plugins.copied_files() if source == SOURCE else {}
    return {file: (source / file).read_bytes() for file in code_files(source)} | own


def code_files(source: Path = SOURCE) -> list[Path]:
    """Return the files of our packages and modules, relative to `source`, in order."""
    found = [path for package in PACKAGES for path in (source / package).rglob("*")]
    found += [source / module for module in MODULES]
    return sorted(
        path.relative_to(source)
        for path in found
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    )
