"""Train a recipe here, and look after runs.

python -m dist_train RECIPE --run-dir DIR --ranks N key=value ...   train, or go on
python -m dist_train list                                           all recipes
python -m dist_train status RUN                                     where a run stands
python -m dist_train plan RECIPE --nodes 8 --gpu a100-40g            what it needs
python -m dist_train ema RUN --relative-width 0.07                  an average made afterwards
python -m dist_train export RUN OUT                                 a checkpoint for DeepSpeed

Exit codes of training: 0 finished, 2 refused (bad settings or input, or a folder that cannot be
written), 3 diverged, 75 stopped on request with its state saved, 76 a rank was lost or hung: after
75 and 76 the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import relaywave

if __name__ == "__main__":
    relaywave.reject_hidden_packages("dist_train")

from dist_train.checkpoint.format import CheckpointError
from dist_train.recipes import RECIPES, find_recipe
from dist_train.runtime.launch import launch_ranks, should_launch
from dist_train.train import refuse, train
from models.config_io import ConfigError, did_you_mean, override, to_json

COMMANDS = ("list", "status", "plan", "ema", "export")


def main(argv: Sequence[str] | None = None, prog: str = "python -m dist_train") -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        command, *rest = arguments or [""]
        if command in COMMANDS:
            options = build_parser(prog, command).parse_intermixed_args(rest)
            code: int = options.run_command(options)
            return code
        return _train_command(build_parser(prog).parse_intermixed_args(arguments), arguments)
    except (ValueError, OSError, CheckpointError) as error:
        return refuse(error)


def build_parser(prog: str, command: str = "") -> argparse.ArgumentParser:
    """Return the parser of one of COMMANDS, else of training; imports what this one needs."""
    parser = relaywave.Parser(prog=f"{prog} {command}".rstrip())
    if command == "list":
        parser.description = "Print all recipes."
        parser.set_defaults(run_command=_list_recipes)
    elif command == "status":
        from dist_train.monitoring.status import add_status

        add_status(parser)
    elif command == "plan":
        from dist_train.planning.plan import add_plan

        add_plan(parser)
    elif command == "ema":
        from dist_train.ema_posthoc import add_ema

        add_ema(parser)
    elif command == "export":
        from dist_train.checkpoint.export_deepspeed import add_export

        add_export(parser)
    else:
        _add_train(parser)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a recipe on this machine (or in the ranks of torchrun or Slurm)."
        " The same command resumes an interrupted run."
        f" Other commands: {', '.join(COMMANDS)}, each with --help."
    )
    parser.add_argument("recipe", help="name of a recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changed settings")
    parser.add_argument("--run-dir", type=Path, help="directory of the run, with all its state")
    parser.add_argument("--ranks", type=int, help="processes to start here, one per GPU")
    parser.add_argument("--print-config", action="store_true", help="print the settings and exit")
    parser.add_argument(
        "--allow-changes", action="store_true", help="resume with changed settings, if harmless"
    )
    parser.add_argument(
        "--deepspeed", type=Path, metavar="JSON", help="further settings of DeepSpeed"
    )
    parser.add_argument(
        "--profile-steps", type=int, default=0, metavar="N", help="trace N steps into profile/"
    )


def _train_command(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    if options.recipe not in RECIPES and (meant := did_you_mean(options.recipe, COMMANDS)):
        raise ConfigError(f"there is no command or recipe {options.recipe!r}{meant}")
    config = override(find_recipe(options.recipe)(), options.overrides)
    if options.deepspeed is not None:
        config = replace(config, deepspeed=_read_json(options.deepspeed))
    if options.print_config:
        print(json.dumps(to_json(config), indent=2))
        return 0
    if options.run_dir is None:
        raise ValueError("--run-dir is missing: name the directory that this run lives in")
    if should_launch(options.ranks):
        return launch_ranks("dist_train", arguments, options.ranks)
    return train(
        config, options.run_dir, options.allow_changes, profile_steps=options.profile_steps
    )


def _read_json(path: Path) -> dict[str, object]:
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return document


def _list_recipes(options: argparse.Namespace) -> int:
    del options
    for name, recipe in sorted(RECIPES.items()):
        print(f"{name:40} {(recipe.__doc__ or '').strip().splitlines()[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
