"""Telling people about jobs, by a command of the site's: the profile's `notify`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Literal

from models.command_line import one_line, say
from slurm.site import Site

News = Literal["finished", "failed", "crashed", "stopped", "lost", "budget"]
"""What people are told: a run is trained; a job failed; it crashed and runs again; it does not run
again; it could not be requeued from its node; its budget is used up and it goes on."""
SECONDS = 30.0
"""How long the command may take: the node is wanted for something else."""


def notify(site: Site, news: News, root: Path, text: str) -> None:
    """Call the site's command with the news, the directory of the job, and a line of text.

    No shell reads them. Whatever goes wrong is said and changes nothing.
    """
    if not site.notify:
        return
    command = [*shlex.split(site.notify), news, str(root), one_line(text)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(),
                              timeout=SECONDS, check=False)  # fmt: skip
        problem = f"exit code {done.returncode}" if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        problem = str(error)
    if problem:
        say(f"notify={site.notify!r:.200} of the site profile failed: {problem}", "note")
