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
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
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
        has_parsers: Whether `build_parser(prog, NAME)` of the package makes the parser of a command
            NAME, and not one parser of all commands.
    """

    package: str
    help: str
    is_named: bool = False
    has_parsers: bool = False


COMMANDS = {
    "data": Command("data_pipelines", "pack image sets; check, preview and measure them"),
    "train": Command(
        "dist_train", "train a recipe; list, status, plan, ema, export", has_parsers=True
    ),
    "eval": Command("evaluation", "sample, compute reference statistics and metrics, make tables"),
    "demo": Command("evaluation", "draw samples in a browser, with controls", is_named=True),
    "slurm": Command(
        "slurm", "submit all of these as jobs; status, logs, cancel", has_parsers=True
    ),
    "report": Command(
        "slurm",
        "write a page about runs: curves, samples, results",
        is_named=True,
        has_parsers=True,
    ),
    "paper": Command(
        "slurm",
        "reproduce tables and figures of the papers: list, run NAME",
        is_named=True,
        has_parsers=True,
    ),
    "convert": Command("models", "convert official checkpoints to snapshots", is_named=True),
    "spectrum": Command("models", "plot the spectra of images and noise", is_named=True),
}
USES = {
    "models": ("models",),
    "data_pipelines": ("models", "data_pipelines"),
    "dist_train": ("models", "data_pipelines", "dist_train"),
    "evaluation": ("models", "data_pipelines", "dist_train", "evaluation"),
    "slurm": ("models", "data_pipelines", "dist_train", "evaluation", "slurm"),
}
"""Packages that each package imports from, itself included."""
SHELLS = ("bash", "zsh", "fish")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    if "_ARGCOMPLETE" in os.environ:
        complete()
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not arguments:
        parser.print_help()
        return 2
    name = parser.parse_args(arguments[:1]).command
    if name == "completion":
        return _print_completion(arguments[1:])
    command = COMMANDS[name]
    reject_hidden_packages(command.package, "take its directory off PYTHONPATH")
    from models.command_line import exit_on_interrupt

    exit_on_interrupt()
    run = importlib.import_module(f"{command.package}.__main__").main
    if command.is_named:
        code: int = run(arguments, "relaywave")
    else:
        code = run(arguments[1:], f"relaywave {name}")
    return code


def _parser() -> argparse.ArgumentParser:
    helps = {name: command.help for name, command in COMMANDS.items()}
    helps["completion"] = "print code that lets a shell complete commands, recipes and settings"
    listing = "\n".join(f"  {name:11}{text}" for name, text in helps.items())
    parser = Parser(
        prog="relaywave",
        description="Train, launch and evaluate Relay Diffusion and WaveDiff image generators.",
        epilog=f"commands (each with --help):\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"relaywave {version()}")
    parser.add_argument("command", choices=helps, metavar="COMMAND", help="see below")
    return parser


LARGEST = 1 << 62
"""Bound of the numbers on a command line."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, which suggests the choice that may be meant.

    What it returns has an attribute `given`: the names of what has another value than its default.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse a command line; returns the arguments, and those that are not known."""
        parsed, rest = super().parse_known_args(args, namespace)
        values = vars(parsed)
        own = {a.dest for a in self._actions if values.get(a.dest, a.default) != a.default}
        parsed.given = getattr(parsed, "given", frozenset()) | own
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 after one line on what is wrong."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")

    def _get_option_tuples(self, option_string: str) -> Any:
        """Return what an abbreviation may stand for: not --import, which is read before parsing."""
        found = super()._get_option_tuples(option_string)
        return [option for option in found if "--import" not in option[0].option_strings]

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        value = super()._get_value(action, arg_string)
        if isinstance(value, (int, float)) and not abs(value) < LARGEST:  # nor is NaN
            raise argparse.ArgumentError(action, f"{arg_string:.40} is no number that is possible")
        return value

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, _unknown(str(value), map(str, action.choices)))


def add_import(parser: argparse.ArgumentParser) -> None:
    """Add the option that names plugins; `models.plugins.load` reads it before there is a parser.

    What they add is among the choices of other options.
    """
    parser.add_argument(
        "--import",
        action="append",
        dest="imports",
        default=argparse.SUPPRESS,
        metavar="FILE|MODULE",
        help="import a plugin first (docs/extending.md); may be repeated",
    )


def _unknown(value: str, choices: Iterable[str]) -> str:
    known = list(choices)
    similar = difflib.get_close_matches(value, known, n=1)
    meant = f"; did you mean {similar[0]}?" if similar else ""
    return f"invalid choice: {value!r} (choose from {', '.join(known)}){meant}"


def version() -> str:
    """Return the version: of the checkout that this file is in, else of the installed package."""
    file = HERE / "pyproject.toml"
    project = tomllib.loads(file.read_text()).get("project", {}) if file.exists() else {}
    if project.get("name") == "relaywave":
        return str(project["version"])
    try:
        return importlib.metadata.version("relaywave")
    except importlib.metadata.PackageNotFoundError:  # a copy of the code, as jobs run
        return "unknown"


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


def _print_completion(arguments: Sequence[str]) -> int:
    from argcomplete import shellcode  # type: ignore[attr-defined]

    print(shellcode(["relaywave"], shell=_completion_parser().parse_args(arguments).shell))
    return 0


def _completion_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="relaywave completion",
        description="Print code that lets a shell complete commands, recipes and settings.",
        epilog='Put into ~/.bashrc or ~/.zshrc: eval "$(relaywave completion bash)" (or zsh);'
        " into ~/.config/fish/config.fish: relaywave completion fish | source",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    return parser


def complete() -> None:
    """Write what the shell may insert to where its code from argcomplete reads it, and exit.

    Only the package whose command is on the command line is imported. Its parser starts behind the
    words of its `prog`: argcomplete takes how many there are from the environment.
    """
    from argcomplete.lexers import split_line

    first = int(os.environ["_ARGCOMPLETE"]) - 1
    line, point = os.environ["COMP_LINE"], int(os.environ["COMP_POINT"])
    parser = _find_parser(split_line(line, point)[3][first:])
    os.environ["_ARGCOMPLETE"] = str(first + len(parser.prog.split()))
    _completion_finder()(parser)


def _find_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of the command that a command line begins with."""
    name = words[1] if len(words) > 1 else ""
    if name == "completion":
        return _completion_parser()
    if name not in COMMANDS:
        return _parser()
    command = COMMANDS[name]
    module = importlib.import_module(f"{command.package}.__main__")
    prog = "relaywave" if command.is_named else f"relaywave {name}"
    named = [name] if command.is_named else words[2:3]
    named = named if command.has_parsers else []
    parser: argparse.ArgumentParser = module.build_parser(prog, *named)
    _add_completers(parser)
    return parser


def _add_completers(parser: argparse.ArgumentParser) -> None:
    """Let names that no parser lists be completed, by what the arguments are called."""
    actions = {action.dest: action for action in parser._actions}
    if "recipe" in actions:
        from dist_train.completion import complete_recipe, complete_setting

        complete_by(actions["overrides"], complete_setting)
        if not hasattr(actions["recipe"], "completer"):
            complete_by(actions["recipe"], complete_recipe)
    if "gpu" in actions:
        from dist_train.planning.hardware import GPUS

        complete_by(actions["gpu"], lambda **_: GPUS)
    if "official" in actions:
        from slurm.paper.experiments import EXPERIMENTS

        for name in ("name", "overrides"):  # argcomplete takes a missing name for given
            complete_by(actions[name], lambda **_: EXPERIMENTS)
    if "workflow" in actions:
        from slurm.workflows import WORKFLOWS

        complete_by(actions["workflow"], lambda **_: ("list", *WORKFLOWS))


def _completion_finder() -> Callable[[argparse.ArgumentParser], None]:
    from argcomplete import CompletionFinder  # type: ignore[attr-defined]

    class Finder(CompletionFinder):
        """Completes repeatable arguments behind options too: argcomplete takes them for ended."""

        def collect_completions(self, parsers: Any, arguments: Any, prefix: str) -> list[str]:
            for parser in parsers:
                if not parser.active_actions:
                    positional = parser._get_positional_actions()
                    parser.active_actions += [a for a in positional if a.nargs in ("*", "+")]
            found: list[str] = super().collect_completions(parsers, arguments, prefix)
            return found

    return Finder()


def complete_by(action: argparse.Action, completer: Callable[..., Iterable[str]]) -> None:
    """Have argcomplete ask `completer` for the values of an argument."""
    action.completer = completer  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
