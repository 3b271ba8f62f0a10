"""relaywave's commands as Slurm jobs: `relaywave slurm COMMAND --help`.

After exit code 2, and one line about what is wrong, nothing was queued.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import relaywave

if __name__ == "__main__":
    relaywave.reject_hidden_packages("slurm")

from models import command_line, plugins

if __name__ == "__main__":
    command_line.exit_on_interrupt()

from slurm.continuous_eval.command import add_reconcile
from slurm.doctor import add_doctor
from slurm.monitor.commands import add_cancel, add_history, add_logs, add_status
from slurm.submit.eval_pack_commands import (
    add_eval,
    add_evaluation_sweep,
    add_pack,
    add_reference,
    add_sample,
)
from slurm.submit.sweep_command import add_sweep
from slurm.submit.train_command import add_resume, add_train


def _add_report(parser: argparse.ArgumentParser) -> None:
    from slurm.report.command import add_report  # reads results, and so imports torch

    add_report(parser)


def _add_paper(parser: argparse.ArgumentParser) -> None:
    from slurm.paper.command import add_paper  # imports recipes and results, and so torch

    add_paper(parser)


def _add_workflow(parser: argparse.ArgumentParser) -> None:
    from slurm.workflows.command import add_workflow  # imports recipes, and so torch

    add_workflow(parser)


COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "train": (add_train, "submit a run"),
    "sweep": (add_sweep, "submit a grid of runs as one array"),
    "sample": (add_sample, "submit sampling"),
    "eval": (add_eval, "submit an evaluation"),
    "eval-sweep": (add_evaluation_sweep, "submit evaluations over a grid of sampler settings"),
    "reference": (add_reference, "submit reference statistics"),
    "pack": (add_pack, "submit the packing of an image set as an array"),
    "resume": (add_resume, "submit stopped runs again"),
    "workflow": (_add_workflow, "submit an experiment as a graph of jobs"),
    "reconcile": (add_reconcile, "submit the due evaluations of runs"),
    "status": (add_status, "show where runs and their jobs stand"),
    "logs": (add_logs, "show what the tasks of a job print"),
    "history": (add_history, "show what runs have cost, and their goodput"),
    "doctor": (add_doctor, "check whether a site is fit for training"),
    "paper": (_add_paper, "reproduce a table or figure of the papers"),
    "report": (_add_report, "write a page about runs: curves, samples, results"),
    "cancel": (add_cancel, "cancel jobs; training saves its state first"),
}
ALIASES = {"pipeline": "workflow"}
"""Former names of commands, which scripts may still use."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m slurm") -> int:
    """Run a command; returns the exit code."""
    return command_line.run(lambda: _run(argv, prog))


def _run(argv: Sequence[str] | None, prog: str) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    arguments[:1] = [ALIASES.get(name, name) for name in arguments[:1]]
    command = arguments[0] if arguments else ""
    plugins.load(arguments)
    parser = build_parser(prog, command)
    if command not in COMMANDS:
        parser.parse_args(arguments[:1])
    args, passed_on = parser.parse_known_args(arguments[1:])
    if "passed_on" in args:
        args.passed_on = passed_on
    elif passed_on:  # options and positional arguments in any order
        args = parser.parse_intermixed_args(arguments[1:])
    command_line.check_files(args)
    args.command(args)


def build_parser(prog: str, command: str = "") -> argparse.ArgumentParser:
    """Return the parser of one of COMMANDS, else one that only knows their names."""
    if command in COMMANDS:
        add, text = COMMANDS[command]
        parser = relaywave.Parser(prog=f"{prog} {command}", description=text, allow_abbrev=False)
        add(parser)
        relaywave.add_import(parser)
        return parser
    listing = "\n".join(f"  {name:10} {text}" for name, (_, text) in COMMANDS.items())
    parser = relaywave.Parser(
        prog=prog,
        description=f"{__doc__}\ncommands:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    return parser


if __name__ == "__main__":
    sys.exit(main())
