"""Command line of the evaluation: samples, references, results.

Under torchrun (or Slurm) the same commands share their work over all ranks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import relaywave

if __name__ == "__main__":
    relaywave.reject_hidden_packages("evaluation")

from models import command_line, plugins

if __name__ == "__main__":
    command_line.exit_on_interrupt()

import torch

from dist_train.runtime import rank_errors
from dist_train.runtime.launch import launch_ranks, should_launch
from dist_train.runtime.preemption import stop_with_launcher
from dist_train.runtime.watchdog import LostRankError, is_lost_contact
from dist_train.runtime.world import World, init_world
from evaluation import dry_run
from evaluation.arguments import build_parser, parse
from evaluation.commands import COMMANDS, Work

TIMEOUT = timedelta(hours=2)


@torch.no_grad()
def main(argv: Sequence[str] | None = None, prog: str = "python -m evaluation") -> int:
    """Run a command; returns the exit code."""
    return command_line.run(lambda: _run(sys.argv[1:] if argv is None else list(argv), prog))


def _run(arguments: list[str], prog: str) -> int:
    stop_with_launcher()
    plugins.load(arguments)
    args = parse(arguments, build_parser(prog))
    command_line.check_files(args)
    place = vars(args).get("out") or vars(args).get("plots") or Path()
    world = None
    try:
        with command_line.about(place):
            if vars(args).get("dry_run"):
                dry_run.check(args)
                print(f"{args.command}: valid")
                return 0
            launches = should_launch(vars(args).get("ranks"))
            if hasattr(args, "ranks") and "RANK" in os.environ:
                world = init_world(TIMEOUT)
            work = COMMANDS[args.command](args)
            if work is None:
                return 0
            if launches:
                return launch_ranks("evaluation", arguments, args.ranks)
            world = world or init_world(TIMEOUT)
            _share(work, world)
    except BrokenPipeError:
        raise  # `| head` has seen enough: no failure
    except (Exception, KeyboardInterrupt) as error:
        return rank_errors.fail(error, world)
    return 0


def _share(work: Work, world: World) -> None:
    """Do this rank's part; raises LostRankError if another rank is gone."""
    try:
        work(world)
        world.close()
    except RuntimeError as error:
        if not is_lost_contact(error):
            raise
        raise LostRankError(
            f"rank {world.rank} lost contact with another rank; finished work is on disk;"
            " run the same command again to resume"
        ) from None


if __name__ == "__main__":
    command_line.leave(main())
