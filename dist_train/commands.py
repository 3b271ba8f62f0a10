"""What `train RECIPE`, `plan` and `list` do."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_pipelines.backends.build import import_backend
from dist_train.config import RunConfig
from dist_train.dry_run import check_present_data, check_run, check_settings
from dist_train.planning.micro_batch import plan_micro_batch
from dist_train.planning.plan import describe_plan, make_plan, planned_machine
from dist_train.precision import settle_precision
from dist_train.recipes import RECIPES, resolve_config
from dist_train.runtime.launch import check_ranks, launch_ranks, should_launch
from dist_train.runtime.run_dir import read_run_config, validate_config
from dist_train.runtime.run_files import check_is_run, import_recorded, is_run
from dist_train.train import train
from models.command_line import EXIT_PREEMPTED, say, settings_of
from models.config_io import ConfigError, did_you_mean, differences, override, to_json
from models.safe_files.documents import read_object


def train_command(options: argparse.Namespace, commands: Sequence[str]) -> int:
    """Train a recipe or resume a run, in ranks started here or as one; returns the exit code.

    Args:
        options: The command line; `arguments` are all of it, for ranks.
        commands: What else might have been meant instead of a recipe.

    Raises:
        ValueError: An unknown recipe, a setting that is impossible, or an option that is missing.
    """
    _take_run(options)
    if options.run_dir is not None:
        import_recorded(options.run_dir)
    recipe, _, overrides = settings_of(options)
    if recipe and recipe not in RECIPES and (meant := did_you_mean(recipe, commands)):
        raise ConfigError(f"there is no command or recipe {recipe!r}{meant}")
    config = _configured(options)
    _check_options(options, overrides)
    if options.print_config:
        print(json.dumps(to_json(config), indent=2))
        return 0
    if options.run_dir is None:
        raise ValueError("--run-dir is missing: name the directory that this run lives in")
    launches = should_launch(options.ranks)
    is_rank = "RANK" in os.environ
    if options.dry_run and not (options.steps and is_rank):
        _dry_run(config, options)
    if options.dry_run and not options.steps:
        return 0
    if launches:
        return launch_ranks("dist_train", options.arguments, options.ranks, EXIT_PREEMPTED)
    if options.steps:
        from dist_train.dry_run.trial import try_steps  # as heavy as what `train` imports

        return try_steps(config, options.run_dir, options.steps, options.allow_changes)
    return train(
        config, options.run_dir, options.allow_changes, profile_steps=options.profile_steps
    )


def _take_run(options: argparse.Namespace) -> None:
    """Take a run that stands in the place of a recipe as the run directory.

    Raises:
        ConfigError: There is no run at a path, or an option says what the run says.
    """
    options.is_resumed = False
    named = options.recipe or ""
    if not named or "=" in named or named in RECIPES:
        return
    if not (os.sep in named or is_run(Path(named))):
        return  # a recipe that there is not
    check_is_run(Path(named))
    for option, value in (("--run-dir", options.run_dir), ("--config", options.config)):
        if value is not None:
            raise ConfigError(f"{named} is a run, which has its settings: leave {option} out")
    options.run_dir, options.recipe, options.is_resumed = Path(named), None, True


def _configured(options: argparse.Namespace) -> RunConfig:
    """Return the settings of a command line, DeepSpeed's of `--deepspeed` among them."""
    recipe, file, overrides = settings_of(options)
    if getattr(options, "is_resumed", False):
        config = override(read_run_config(options.run_dir), overrides)
    else:
        config = resolve_config(recipe, file, overrides)
    if options.deepspeed is None:
        return config
    for key in (text.partition("=")[0] for text in overrides):
        if key.startswith("sharding.deepspeed"):
            raise ConfigError(f"--deepspeed would replace {key}; leave one of them out")
    sharding = replace(config.sharding, deepspeed=read_object(options.deepspeed))
    return replace(config, sharding=sharding)


def _check_options(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Raise ValueError if a setting contradicts an option, or an option makes no sense."""
    for text in overrides:
        key = text.partition("=")[0]
        if key in ("sharding.nodes", "sharding.gpus_per_node"):
            raise ConfigError(f"{key} is the size of a Slurm job; here --ranks is that of the run")
    if options.steps is not None and options.steps < 1:
        raise ConfigError(f"--steps={options.steps} must be positive")
    if options.steps and not options.dry_run:
        raise ConfigError(
            f"--steps={options.steps} is for --dry-run; set total_images for the length of a run"
        )
    if options.profile_steps < 0:
        raise ConfigError(f"--profile-steps={options.profile_steps} must not be negative")


def _dry_run(config: RunConfig, options: argparse.Namespace) -> None:
    """Check all that ranks would reject."""
    ranks = options.ranks or 1
    check_ranks(ranks)
    validate_config(options.run_dir, config, options.allow_changes)
    import_backend(config.data.backend)
    if warning := check_run(config, options.run_dir, ranks, data_later=False):
        say(warning, "warning")
    print(f"{config.recipe} with --ranks={ranks} is valid; nothing was written")


def plan_command(options: argparse.Namespace) -> int:
    """Print the plan of a recipe; returns the exit code.

    Settings are validated as `train` does. Sets need not exist yet; one that does is checked, too.

    Raises:
        ValueError: Unknown recipe, setting or GPU, or numbers that make no sense.
    """
    config = _configured(options)
    machine = planned_machine(options, config)
    config = settle_precision(config, machine.gpu.bfloat16)
    config = plan_micro_batch(config, machine.ranks, machine.gpu.memory_bytes)
    batches = check_settings(config, machine.ranks)
    if warning := check_present_data(config):
        say(warning, "warning")
    for line in describe_plan(make_plan(config, batches, machine), options.gpu_hours_per_failure):
        print(line)
    return 0


def list_command(options: argparse.Namespace) -> int:
    """Print the recipes, each with the first line of its docstring; returns the exit code."""
    del options
    for name, recipe in sorted(RECIPES.items()):
        print(f"{name:40} {(recipe.__doc__ or '').strip().splitlines()[0]}")
    return 0


def diff_command(options: argparse.Namespace) -> int:
    """Print the settings in which two runs differ; returns the exit code: 0 also if there are any.

    Raises:
        ValueError: One of them is no run, or its settings are damaged.
    """
    first, second = (to_json(read_run_config(run)) for run in options.runs)
    changed = differences(first, second)
    for key, (old, new) in changed.items():
        print(f"{key}: {json.dumps(old)} -> {json.dumps(new)}")
    if not changed:
        print("the same settings")
    return 0
