"""Python processes that jobs start: with our code in any directory, and in whose environment.

`python -m` imports from the current directory first, which may hold a `models/`, `evaluation/` or
`slurm.py` of the user's. Python's option -P leaves that directory out; then PYTHONPATH must say
where our code is, unless it is installed.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
"""Directory of our packages: a checkout, the copy that a job runs, or site-packages."""
PYTHON = f"{shlex.quote(sys.executable)} -P"
"""This interpreter for a shell, without the current directory among those of modules."""


def slurm_command(*arguments: str) -> list[str]:
    """Return the command line of `relaywave slurm ARGUMENTS`; it needs `code_variables`."""
    return [sys.executable, "-P", "-m", "slurm", *arguments]


def code_variables(code: Path = SOURCE) -> dict[str, str]:
    """Return the variables with which a process, and those that it starts, run this code.

    What modules or the user have put on PYTHONPATH stays there, after it.
    """
    return {"PYTHONPATH": os.pathsep.join([str(code), *_others_on_path()]), "PYTHONSAFEPATH": "1"}


def _others_on_path() -> list[str]:
    """Return the entries of PYTHONPATH that are not the running code."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [entry for entry in entries if entry and Path(entry) != SOURCE]


def outside_environment() -> dict[str, str]:
    """Return the environment without what belongs to the present job or rank.

    A job that submits another one would otherwise hand it its own Slurm settings and rank. SBATCH_*
    of the user's shell are options of the command line (submit/sbatch_options.py), which are in the
    batch script: sbatch itself would put them above explicit options.
    """
    own = ("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_", "PMI_", "PMIX_")
    path = os.pathsep.join(_others_on_path())
    ranks = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RELAYWAVE_PORT"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF"
        or not (name.startswith(own) or name in ranks or name == "PYTHONPATH")
    }
    return kept | ({"PYTHONPATH": path} if path else {})
