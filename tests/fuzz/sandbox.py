"""A directory for one probe, and a process that cannot do harm outside of it.

tree/      what is read
out/       what the probe may write (missing before)
home/, tmp/, cwd/, aside/    of the process
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import pickle
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.subject import Rejected, Result

SECONDS = 10.0
MEGABYTES = 1000.0
PATIENCE = 40.0
"""Seconds by the clock after which a probe hangs; SECONDS are processors' time."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = frozenset(
    {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
     "os.chmod", "os.chown", "os.utime", "shutil.rmtree", "os.exec", "os.system"}
)  # fmt: skip


@dataclass
class Outcome:
    """How a probe ended.

    Attributes:
        code: Exit code of its command; None if it died.
        result: What it delivered.
        out: What it printed.
        err: What it printed to stderr.
        log: What it logged or warned of.
        crash: A traceback, or how it died.
        seconds: Processors' time.
        megabytes: Memory that it needed above that of imports.
        wrote: What it changed outside of the sandbox.
        modules: Modules that it imported.
    """

    code: int | None = None
    result: Result = field(default_factory=dict)
    out: str = ""
    err: str = ""
    log: str = ""
    crash: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0
    wrote: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)


class Sandbox:
    """The directory; there is one per process, always of the same name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = path / "tree"
        self.aside = path / "aside"

    def enter(self) -> None:
        """Let this process, and what it imports from now on, live in the sandbox."""
        os.environ |= {
            "HOME": str(self.path / "home"), "TMPDIR": str(self.path / "tmp"),
            "RELAYWAVE_CACHE": str(self.path / "home/cache"),
            "XDG_CACHE_HOME": str(self.path / "home/xdg"),
            "MPLCONFIGDIR": str(self.path / "home/mpl"),
            "NUMBA_CACHE_DIR": str(self.path / "home/numba"),
        }  # fmt: skip
        tempfile.tempdir = str(self.path / "tmp")

    def fill(self, pristine: Path) -> None:
        """Make everything new."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        shutil.copytree(pristine, self.tree, symlinks=True)
        for name in ("home", "tmp", "cwd", "aside"):
            (self.path / name).mkdir()

    def state(self) -> dict[str, tuple[Any, ...]]:
        """Return what lies in the sandbox, home apart, with what tells whether it was changed."""
        found = {}
        left = [self.path]
        while left:
            for entry in os.scandir(left.pop()):
                if entry.path == str(self.path / "home"):
                    continue
                stat = entry.stat(follow_symlinks=False)
                is_dir = entry.is_dir(follow_symlinks=False)
                time_changed = 0 if is_dir else stat.st_mtime_ns
                size = 0 if is_dir else stat.st_size
                name = os.path.relpath(entry.path, self.path)
                found[name] = (stat.st_mode, size, time_changed, 0 if is_dir else stat.st_ino)
                if is_dir:
                    left.append(Path(entry.path))
        return found

    def run(self, probe: Callable[[Path], Result], list_modules: bool = False) -> Outcome:
        """Run a probe in a process of its own, with limits."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            self._serve(probe, writing, list_modules)
        os.close(writing)
        os.setpgid(child, child)
        content = _read(reading, time.monotonic() + PATIENCE)
        if content is None:
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if content is None:
            return Outcome(crash=f"it hangs: no end after {PATIENCE:g} s")
        if os.WIFSIGNALED(status) or not content:
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            return Outcome(crash=f"it died of signal {number}, with {len(content)} bytes said")
        outcome: Outcome = pickle.loads(content)
        return outcome

    def _serve(self, probe: Callable[[Path], Result], writing: int, list_modules: bool) -> None:
        """Run a probe in this process, send the outcome, and end."""
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        os.chdir(self.path / "cwd")
        outcome = Outcome()
        try:
            _limit()
            silent = os.open("/dev/null", os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(silent, descriptor)
            before = _megabytes("VmRSS")
            _watch_writes(str(self.path), outcome.wrote)
            _probe(probe, self.tree, outcome)
            outcome.megabytes = _megabytes("VmHWM") - before
            usage = [
                resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            ]
            outcome.seconds = sum(part.ru_utime + part.ru_stime for part in usage)
            if list_modules:
                outcome.modules = sorted(sys.modules)
            content = pickle.dumps(outcome)
            while content:
                content = content[os.write(writing, content) :]
        finally:
            os._exit(0)


def _probe(probe: Callable[[Path], Result], tree: Path, outcome: Outcome) -> None:
    out, err, log = io.StringIO(), io.StringIO(), io.StringIO()
    sys.stdout, sys.stderr = out, err
    logging.captureWarnings(True)
    logging.basicConfig(stream=log, level=logging.INFO, format="%(message)s", force=True)
    try:
        outcome.result = dict(probe(tree))
        outcome.code = 0
    except Rejected as rejected:
        outcome.code = rejected.code
    except BaseException:
        outcome.crash = traceback.format_exc()
    outcome.out, outcome.err, outcome.log = out.getvalue(), err.getvalue(), log.getvalue()


def _limit() -> None:
    """Protect the machine; what is too much is found by measuring, in `judge`."""
    gc.disable()
    data = int(_megabytes("VmData")) + 4000
    resource.setrlimit(resource.RLIMIT_DATA, (data << 20, data << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS) + 5, int(SECONDS) + 10))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM, the most memory so far, starts anew
    gc.enable()


def _watch_writes(allowed: str, wrote: list[str]) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            changes = bool(flags & WRITING)
        else:
            path, changes = arguments[0] if arguments else "", event in CHANGES
        if not changes or isinstance(path, int) or path is None:
            return
        where = os.path.abspath(os.fsdecode(path))
        if not where.startswith((allowed + "/", "/dev/null", "/proc/self/")) and where != allowed:
            wrote.append(f"{event} {where}")

    sys.addaudithook(hook)


def _megabytes(name: str) -> float:
    """Return a size of this process, in MB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1000 for line in file if line.startswith(f"{name}:"))


def _read(descriptor: int, deadline: float) -> bytes | None:
    """Return what a process says until its end, None if it does not end in time."""
    parts = []
    with open(descriptor, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0]:
            part = pipe.read(1 << 16)
            if not part:
                return b"".join(parts)
            parts.append(part)
    return None
