"""Options of sbatch by their names: those that relaywave sets itself, those of the user's shell."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

KEY = re.compile(r"[a-z][a-z0-9-]*")
BY_RELAYWAVE = frozenset((
    "array", "batch", "chdir", "clusters", "error", "export", "export-file", "get-user-env", "gid",
    "help", "ignore-pbs", "input", "kill-on-invalid-dep", "no-requeue", "open-mode", "output",
    "parsable", "quiet", "requeue", "test-only", "uid", "usage", "verbose", "version", "wait",
    "wckey", "wrap",
))  # fmt: skip
"""Options that jobs depend on (logs, requeues, arrays) or that change what sbatch prints."""
INSTEAD = {
    "job-name": "--name",
    "ntasks": "--nodes and --tasks-per-node",
    "gpus": "--nodes and --gpus-per-node",
    "ntasks-per-gpu": "--tasks-per-node",
}
"""Options that ours replace, as the number of ranks follows from these."""
IN_THE_SHELL = {"TIMELIMIT": "time", "MEM_PER_NODE": "mem", "REQ_SWITCH": "switches",
                "ARRAY_INX": "array"}  # fmt: skip
"""Variables `SBATCH_*` that are not called as their options."""


def check_key(text: str) -> str:
    """Return the name of an option of sbatch, with dashes.

    Raises:
        ValueError: It is no name, or of an option that relaywave sets itself.
    """
    key = text.replace("_", "-").lower()
    if not KEY.fullmatch(key):
        raise ValueError(f"{text!r:.80} is no name of an option, such as gpu-bind")
    if key in INSTEAD:
        raise ValueError(f"relaywave sets sbatch's {key} itself; use {INSTEAD[key]}")
    if key in BY_RELAYWAVE:
        raise ValueError(f"relaywave sets sbatch's {key} itself; leave it out")
    return key


def shell_options(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the options that `SBATCH_*` of the user's shell set, by sbatch's names.

    Within a job they are the job's own, and there are none of the user's.
    """
    variables = os.environ if variables is None else variables
    if "SLURM_JOB_ID" in variables:
        return {}
    found = {}
    for variable, value in variables.items():
        if variable.startswith("SBATCH_") and variable != "SBATCH_WAIT4SWITCH":
            name = variable.removeprefix("SBATCH_")
            found[IN_THE_SHELL.get(name, name.lower().replace("_", "-"))] = value
    if "switches" in found and (longest := variables.get("SBATCH_WAIT4SWITCH")):
        found["switches"] += f"@{longest}"
    return found
