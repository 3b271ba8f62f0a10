"""What `train RECIPE` and `list` do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace

from dist_train.recipes import RECIPES, find_recipe
from dist_train.runtime.launch import launch_ranks, should_launch
from dist_train.train import train
from models.command_line import EXIT_PREEMPTED
from models.config_io import ConfigError, did_you_mean, override, to_json
from models.safe_files.documents import read_object


def train_command(options: argparse.Namespace, commands: Sequence[str]) -> int:
    """Train a recipe, in ranks started here or as one rank; returns the exit code.

    Args:
        options: The command line; `arguments` are all of it, for ranks.
        commands: What else might have been meant instead of a recipe.

    Raises:
        ValueError: An unknown recipe, a setting that is impossible, or an option that is missing.
    """
    if options.recipe not in RECIPES and (meant := did_you_mean(options.recipe, commands)):
        raise ConfigError(f"there is no command or recipe {options.recipe!r}{meant}")
    config = override(find_recipe(options.recipe)(), options.overrides)
    if options.deepspeed is not None:
        sharding = replace(config.sharding, deepspeed=read_object(options.deepspeed))
        config = replace(config, sharding=sharding)
    if options.print_config:
        print(json.dumps(to_json(config), indent=2))
        return 0
    if options.run_dir is None:
        raise ValueError("--run-dir is missing: name the directory that this run lives in")
    if should_launch(options.ranks):
        return launch_ranks("dist_train", options.arguments, options.ranks, EXIT_PREEMPTED)
    return train(
        config, options.run_dir, options.allow_changes, profile_steps=options.profile_steps
    )


def list_command(options: argparse.Namespace) -> int:
    """Print the recipes, each with the first line of its docstring; returns the exit code."""
    del options
    for name, recipe in sorted(RECIPES.items()):
        print(f"{name:40} {(recipe.__doc__ or '').strip().splitlines()[0]}")
    return 0
