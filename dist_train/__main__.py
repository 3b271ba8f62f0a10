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

from dist_train.checkpoint.format import CheckpointError
from dist_train.recipes import RECIPES, find_recipe
from dist_train.runtime.launch import launch_ranks, should_launch
from dist_train.train import refuse, train
from models.config_io import ConfigError, override, to_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["list"]:
            return _list_recipes()
        if arguments[:1] == ["status"]:
            from dist_train.monitoring.status import print_status

            return print_status(arguments[1:])
        if arguments[:1] == ["ema"]:
            from dist_train.ema_posthoc import reconstruct_command

            return reconstruct_command(arguments[1:])
        if arguments[:1] == ["plan"]:
            from dist_train.planning.plan import plan_command

            return plan_command(arguments[1:])
        if arguments[:1] == ["export"]:
            from dist_train.checkpoint.export_deepspeed import export_command

            return export_command(arguments[1:])
        return _train_command(arguments)
    except (ValueError, OSError, CheckpointError) as error:
        return refuse(error)


def _train_command(arguments: list[str]) -> int:
    options = _parser().parse_intermixed_args(arguments)
    config = override(find_recipe(options.recipe)(), options.overrides)
    if options.deepspeed is not None:
        config = replace(config, deepspeed=_read_json(options.deepspeed))
    if options.print_config:
        print(json.dumps(to_json(config), indent=2))
        return 0
    if options.run_dir is None:
        raise ValueError("--run-dir is missing: name the folder that this run lives in")
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


def _list_recipes() -> int:
    for name, recipe in sorted(RECIPES.items()):
        print(f"{name:40} {(recipe.__doc__ or '').strip().splitlines()[0]}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dist_train",
        description="Train a recipe on this machine (or in the ranks of torchrun or Slurm)."
        " The same command goes on where an interrupted one stopped."
        " Other commands: list, status, plan, ema, export, each with --help.",
    )
    parser.add_argument("recipe", help="name of a recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changed settings")
    parser.add_argument("--run-dir", type=Path, help="folder of the run: all its state is there")
    parser.add_argument("--ranks", type=int, help="processes to start here, one per GPU")
    parser.add_argument("--print-config", action="store_true", help="print the settings and stop")
    parser.add_argument(
        "--allow-changes", action="store_true", help="go on with changed settings that are harmless"
    )
    parser.add_argument(
        "--deepspeed", type=Path, metavar="JSON", help="further settings of DeepSpeed"
    )
    parser.add_argument(
        "--profile-steps", type=int, default=0, metavar="N", help="trace N steps into profile/"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
