"""The command `relaywave`: prepares data, trains, evaluates, submits jobs, converts checkpoints.

Each of its commands belongs to one package and does what `python -m PACKAGE` does. It also works in
directories that hold a `models/` or `evaluation/` of the user's: unlike `python -m`, an installed
command does not import from the current directory. A package is imported when its command is
called, so that `relaywave --help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.metadata
import importlib.util
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
"""Directory of this file and of our packages: a checkout, a copy of one, or site-packages."""


@dataclass(frozen=True)
class Command:
    """A command of `relaywave`.

    Attributes:
        package: The package that it belongs to.
        help: What it does.
        is_named: Whether the package itself knows the command by this name, among others.
    """

    package: str
    help: str
    is_named: bool = False


COMMANDS = {
    "data": Command("data_pipelines", "pack image sets; check, preview and measure them"),
    "train": Command("dist_train", "train a recipe; list recipes; status, plan, ema, export"),
    "eval": Command("evaluation", "sample, compute reference statistics and metrics, make tables"),
    "slurm": Command("slurm", "all of these as Slurm jobs; status, logs, resume, cancel"),
    "convert": Command("models", "convert official checkpoints to snapshots", is_named=True),
    "spectrum": Command("models", "plot the spectra of images and noise", is_named=True),
}
USES = {
    "models": ("models",),
    "data_pipelines": ("data_pipelines",),
    "dist_train": ("models", "data_pipelines", "dist_train"),
    "evaluation": ("models", "data_pipelines", "dist_train", "evaluation"),
    "slurm": ("models", "data_pipelines", "dist_train", "evaluation", "slurm"),
}
"""Packages that each package imports from, itself included."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not arguments:
        parser.print_help()
        return 2
    name = parser.parse_args(arguments[:1]).command
    command = COMMANDS[name]
    reject_hidden_packages(command.package, "take its directory off PYTHONPATH")
    run = importlib.import_module(f"{command.package}.__main__").main
    if command.is_named:
        code: int = run(arguments, "relaywave")
    else:
        code = run(arguments[1:], f"relaywave {name}")
    return code


def _parser() -> argparse.ArgumentParser:
    listing = "\n".join(f"  {name:10} {command.help}" for name, command in COMMANDS.items())
    parser = Parser(
        prog="relaywave",
        description="Train, launch and evaluate Relay Diffusion and WaveDiff image generators.",
        epilog=f"commands (each with --help):\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"relaywave {version()}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
    return parser


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, which suggests the choice that may be meant."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 after one line on what is wrong."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, _unknown(str(value), map(str, action.choices)))


def _unknown(value: str, choices: Iterable[str]) -> str:
    known = list(choices)
    similar = difflib.get_close_matches(value, known, n=1)
    meant = f"; did you mean {similar[0]}?" if similar else ""
    return f"invalid choice: {value!r} (choose from {', '.join(known)}){meant}"


def version() -> str:
    """Return the version: of the checkout that this file is in, else of the installed package."""
    project = HERE / "pyproject.toml"
    if project.exists():
        return str(tomllib.loads(project.read_text())["project"]["version"])
    return importlib.metadata.version("relaywave")


def reject_hidden_packages(package: str, remedy: str = "") -> None:
    """Exit with one line if another package would be imported in place of one of ours.

    `python -m` looks in the current directory first, which may hold a `models/` of the user's.

    Args:
        package: The package that is about to run.
        remedy: What to do about it, unless the package is run by `python -m`.
    """
    for name in USES[package]:
        place = _place(name)
        if place != HERE / name:
            called = next(key for key, command in COMMANDS.items() if command.package == package)
            remedy = remedy or f"use `relaywave {called}`, or run in another directory"
            print(f"{package}: {place} hides relaywave's package {name}; {remedy}", file=sys.stderr)
            raise SystemExit(2)


def _place(package: str) -> Path | None:
    """Return where Python finds a package, or module, of this name; nothing is imported."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    if spec.origin is None:  # a directory without __init__.py
        return Path(next(iter(spec.submodule_search_locations or ()))).resolve()
    origin = Path(spec.origin).resolve()
    return origin.parent if origin.name == "__init__.py" else origin


if __name__ == "__main__":
    sys.exit(main())
