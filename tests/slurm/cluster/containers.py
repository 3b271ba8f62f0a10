"""Stand-ins of containers: apptainer and srun with pyxis, whose commands do not have Slurm's.

What they start has a PATH of every command of this machine but Slurm's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slurm.slurm_cli import COMMANDS

APPTAINER = """\
#!/bin/bash
# apptainer exec OPTIONS IMAGE COMMAND...
while [ "$1" = exec ] || [ "${{1#-}}" != "$1" ]; do shift; done
shift
export PATH={inside}
command -v scontrol sbatch >>{seen} || echo none >>{seen}
exec "$@"
"""
SRUN = """\
#!/bin/bash
# srun OPTIONS PYTHON ...: those of pyxis have Python started as in a container
kept=() pyxis=
for word; do
    case $word in
    --container-*) pyxis=1 ;;
    {python}) kept+=(${{pyxis:+{inside}/entered}} "$word") ;;
    *) kept+=("$word") ;;
    esac
done
exec {srun} "${{kept[@]}}"
"""
ENTERED = """\
#!/bin/bash
export PATH={inside}
command -v scontrol sbatch >>{seen} || echo none >>{seen}
exec "$@"
"""


def make_site(root: Path, kind: str) -> Path:
    """Write a site profile: of a kind of container, or of nodes without scontrol and sbatch."""
    site, text = root / f"{kind}.toml", (root / "site.toml").read_text()
    _link_commands(root / "inside", without={*COMMANDS})
    if kind == "without_scontrol":
        _link_commands(root / "nodes", without={*COMMANDS} - {"srun"})
        site.write_text(f'setup = ["export PATH={root}/nodes"]\n{text}')
        return site
    names = {"inside": root / "inside", "seen": root / "seen", "python": sys.executable,
             "srun": _find("srun")}  # fmt: skip
    for path, script in ((root / "bin" / "apptainer", APPTAINER), (root / "bin" / "srun", SRUN),
                         (root / "inside" / "entered", ENTERED)):  # fmt: skip
        path.parent.mkdir(exist_ok=True)
        path.write_text(script.format(**names))
        path.chmod(0o755)
    site.write_text(f'{text}[container]\nimage = "image"\nruntime = "{kind}"\n'
                    f'python = "{sys.executable}"\n')  # fmt: skip
    return site


@contextmanager
def on_path(root: Path) -> Iterator[None]:
    """Have jobs that are submitted meanwhile find the stand-ins."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{root}/bin:{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def commands_inside(root: Path) -> set[str]:
    """Return which of Slurm's commands tasks have found in their containers."""
    return set((root / "seen").read_text().split())


def _find(name: str) -> Path:
    return next(path for path in _commands() if path.name == name)


def _commands() -> Iterator[Path]:
    for directory in os.environ["PATH"].split(os.pathsep):
        if Path(directory).is_dir():
            yield from sorted(Path(directory).iterdir())


def _link_commands(directory: Path, without: set[str]) -> None:
    directory.mkdir(exist_ok=True)
    for path in _commands():
        link = directory / path.name
        if path.name not in without and not link.is_symlink():
            link.symlink_to(path)
