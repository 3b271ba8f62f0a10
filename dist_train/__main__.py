"""Train a recipe on this machine, and look after runs.

relaywave train RECIPE --run-dir DIR --ranks N key=value ...   train, or resume
relaywave train RUN --ranks N                                  resume a run, with its own settings
relaywave train list                                           all recipes
relaywave train status RUN                                     where a run stands
relaywave train diff RUN RUN                                   settings in which two runs differ
relaywave train plan RECIPE --nodes 8 --gpu a100-40g           what it needs
relaywave train ema RUN --relative-width 0.07                  an average made after training
relaywave train export RUN OUT                                 a checkpoint for DeepSpeed

Exit codes of training: 0 finished, 2 invalid settings or input, 3 diverged, 74 storage failed,
75 stopped on request with its state saved, 76 a rank was lost or hung; 1 is a defect. After 74, 75
and 76 the same command resumes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import relaywave

if __name__ == "__main__":
    relaywave.reject_hidden_packages("dist_train")

from models import command_line, plugins

if __name__ == "__main__":
    command_line.exit_on_interrupt()

from dist_train.completion import complete_recipe

COMMANDS = ("list", "status", "diff", "plan", "ema", "export")


def main(argv: Sequence[str] | None = None, prog: str = "python -m dist_train") -> int:
    """Run the command line; returns the exit code."""
    return command_line.run(lambda: _run(argv, prog))


def _run(argv: Sequence[str] | None, prog: str) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    plugins.load(arguments)
    parser = build_parser(prog, *arguments[:1])
    is_named = arguments[:1] and arguments[0] in COMMANDS
    options = parser.parse_intermixed_args(arguments[1:] if is_named else arguments)
    command_line.check_files(options)
    options.arguments = arguments
    code: int = options.run_command(options)
    return code


def build_parser(prog: str, command: str = "") -> argparse.ArgumentParser:
    """Return the parser of one of COMMANDS, else of training; imports what this one needs."""
    parser = relaywave.Parser(prog=f"{prog} {command}" if command in COMMANDS else prog)
    if command == "list":
        parser.description = "Print all recipes."
        parser.set_defaults(run_command=_list)
    elif command == "status":
        from dist_train.monitoring.status import add_status

        add_status(parser)
    elif command == "diff":
        parser.description = "Print the settings in which two runs differ, of the first and second."
        parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
        parser.set_defaults(run_command=_diff)
    elif command == "plan":
        from dist_train.planning.plan import add_plan

        add_plan(parser)
        _add_deepspeed(parser)
        parser.set_defaults(run_command=_plan)
    elif command == "ema":
        from dist_train.ema_posthoc import add_ema

        add_ema(parser)
    elif command == "export":
        from dist_train.checkpoint.export_deepspeed import add_export

        add_export(parser)
    else:
        _add_train(parser)
    relaywave.add_import(parser)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = (__doc__ or "").strip()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    command_line.add_settings(parser, "name of a recipe, a run to resume, or a command")
    recipe = next(action for action in parser._actions if action.dest == "recipe")
    relaywave.complete_by(recipe, _complete_first)
    parser.add_argument("--run-dir", type=Path, help="directory of the run, with all its state")
    parser.add_argument("--ranks", type=int, help="ranks to start on this machine, one per GPU")
    parser.add_argument("--dry-run", action="store_true", help="only check all of it")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="with --dry-run: train N steps and compare the plan"
    )
    parser.add_argument("--print-config", action="store_true", help="print the settings and exit")
    parser.add_argument(
        "--allow-changes", action="store_true", help="resume with changed settings if harmless"
    )
    _add_deepspeed(parser)
    parser.add_argument(
        "--profile-steps", type=int, default=0, metavar="N", help="trace N steps into profile/"
    )
    parser.set_defaults(run_command=_train)


def _add_deepspeed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--deepspeed", type=Path, metavar="JSON", help="file with more settings of DeepSpeed"
    )


def _complete_first(prefix: str, **_: object) -> list[str]:
    return [*filter(lambda name: name.startswith(prefix), COMMANDS), *complete_recipe(prefix)]


def _train(options: argparse.Namespace) -> int:
    from dist_train.runtime.preemption import exiting_when_asked

    with exiting_when_asked():
        from dist_train.commands import train_command  # imports torch, which takes seconds

        return train_command(options, COMMANDS)


def _plan(options: argparse.Namespace) -> int:
    from dist_train.commands import plan_command

    return plan_command(options)


def _diff(options: argparse.Namespace) -> int:
    from dist_train.commands import diff_command

    return diff_command(options)


def _list(options: argparse.Namespace) -> int:
    from dist_train.commands import list_command

    return list_command(options)


if __name__ == "__main__":
    command_line.leave(main())
