"""Train a recipe here: `python -m dist_train RECIPE --run-dir DIR --ranks N key=value ...`.

Exit codes: 0 finished, 2 refused (bad settings or input), 3 diverged, 75 stopped on request with
its state saved: run the same command again to go on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dist_train.config import RunConfig
from dist_train.launch import launch_ranks, should_launch
from dist_train.recipes import RECIPES, find_recipe
from models.config_io import override, to_json

EXIT_REFUSED, EXIT_DIVERGED, EXIT_PREEMPTED = 2, 3, 75


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_intermixed_args(arguments)
    try:
        if options.recipe == "list":
            return _list_recipes()
        config = override(find_recipe(options.recipe)(), options.overrides)
        if options.print_config:
            print(json.dumps(to_json(config), indent=2))
            return 0
        if options.run_dir is None:
            raise ValueError("--run-dir is missing: name the folder that this run lives in")
        if should_launch(options.ranks):
            return launch_ranks("dist_train", arguments, options.ranks)
        return train(config, options.run_dir, options.allow_changes)
    except (ValueError, OSError) as error:
        return _refuse(error)


def train(
    config: RunConfig,
    run_dir: Path,
    allow_changes: bool = False,
    on_snapshot: Callable[[Path], None] | None = None,
) -> int:
    """Train, or go on training, in this process group; returns the exit code.

    `on_snapshot` is called on rank 0 with the path of every snapshot that was written.
    """
    # Imported here, so that --help, --print-config and bad settings answer at once.
    from dist_train.checkpoint import CheckpointError
    from dist_train.distributed import init_world
    from dist_train.loop import DivergedError, Outcome, Trainer
    from dist_train.preemption import stop_with_launcher
    from dist_train.run_folder import RunFolderBusyError, RunLock, settle_config

    stop_with_launcher()
    world = init_world()
    lock = None
    try:
        if world.rank == 0:
            run_dir.mkdir(parents=True, exist_ok=True)
            lock = RunLock(run_dir)
            settle_config(run_dir, config, allow_changes)
        world.barrier()
        outcome = Trainer(config, run_dir, world, on_snapshot).fit()
    except (DivergedError, CheckpointError, RunFolderBusyError) as error:
        return _refuse(error, EXIT_DIVERGED if isinstance(error, DivergedError) else 2)
    except ValueError as error:
        return _refuse(error)
    finally:
        if lock is not None:
            lock.release()
    world.close()
    return EXIT_PREEMPTED if outcome is Outcome.PREEMPTED else 0


def _refuse(error: Exception, code: int = EXIT_REFUSED) -> int:
    """Say in one line, on one rank, what is wrong."""
    if os.environ.get("RANK", "0") == "0":
        print(f"dist_train: {error}", file=sys.stderr, flush=True)
    return code


def _list_recipes() -> int:
    for name, recipe in sorted(RECIPES.items()):
        print(f"{name:40} {(recipe.__doc__ or '').strip().splitlines()[0]}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dist_train",
        description="Train a recipe on this machine (or in the ranks of torchrun or Slurm)."
        " The same command goes on where an interrupted one stopped.",
    )
    parser.add_argument("recipe", help="name of a recipe, or `list`")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changed settings")
    parser.add_argument("--run-dir", type=Path, help="folder of the run: all its state is there")
    parser.add_argument("--ranks", type=int, help="processes to start here, one per GPU")
    parser.add_argument("--print-config", action="store_true", help="print the settings and stop")
    parser.add_argument(
        "--allow-changes", action="store_true", help="go on with changed settings that are harmless"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
