"""A copy of the code in the folder of its jobs: a requeued job runs what was submitted.

Copies are named by a digest of their content, so that jobs of unchanged code share one.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from slurm.jobs.interpreter import SOURCE

PACKAGES = ("models", "data_pipelines", "dist_train", "evaluation", "slurm")
MODULES = ("relaywave.py",)
"""Modules beside the packages, where there are such."""


def code_files(source: Path = SOURCE) -> list[Path]:
    """Return the files of our packages and modules, relative to `source`, in order."""
    found = [path for package in PACKAGES for path in (source / package).rglob("*")]
    found += [source / module for module in MODULES]
    return sorted(
        path.relative_to(source)
        for path in found
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    )


def code_digest(source: Path = SOURCE) -> str:
    """Return a digest of the names and contents of our packages."""
    digest = hashlib.sha256()
    for file in code_files(source):
        content = (source / file).read_bytes()
        digest.update(f"{file}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def code_folder(folder: Path, source: Path = SOURCE) -> Path:
    """Return where the present code is, or would be, copied to."""
    return folder / "code" / code_digest(source)


def copy_code(folder: Path, source: Path = SOURCE) -> Path:
    """Copy the present code below `folder`, unless it is there, and return the copy."""
    copy = code_folder(folder, source)
    if copy.exists():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".copy-", dir=copy.parent))
    for file in code_files(source):
        (temporary / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, temporary / file)
    temporary.chmod(0o755)
    try:
        temporary.rename(copy)
    except OSError:  # another submission was first
        shutil.rmtree(temporary)
    return copy
