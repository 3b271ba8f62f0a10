"""Command line of the evaluation: samples, references, results.

Under torchrun (or Slurm) the same commands share their work over all ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
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
from evaluation.arguments import SHARED, build_parser, parse
from evaluation.commands import COMMANDS, Work

TIMEOUT = timedelta(hours=2)


@torch.no_grad()
def main(argv: Sequence[str] | None = None, prog: str = "python -m evaluation") -> int:
    """Run a command; returns the exit code."""
    return command_line.run(lambda: _run(sys.argv[1:] if argv is None else list(argv), prog))


def _run(arguments: list[str], prog: str) -> int:
    stop_with_launcher()
    world = None
    try:
        if "RANK" in os.environ and arguments[:1] and arguments[0] in SHARED:
            world = init_world(TIMEOUT)  # first, so that what one rank rejects is said on all
        prepare = functools.partial(_prepared, arguments, prog, world)
        args, work = world.attempt(prepare) if world else prepare()
        with command_line.about(_place(args)):
            if work is not None and world is None and should_launch(vars(args).get("ranks")):
                return launch_ranks("evaluation", arguments, args.ranks)
            if work is not None:
                _share(work, world or init_world(TIMEOUT))
            elif world is not None:
                world.close()
    except BrokenPipeError:
        raise  # `| head` has seen enough: no failure
    except (Exception, KeyboardInterrupt) as error:
        return rank_errors.fail(error, world)
    return 0


def _prepared(
    arguments: list[str], prog: str, world: World | None
) -> tuple[argparse.Namespace, Work | None]:
    """Parse and check a command line; return what is to be done, None if all is done."""
    plugins.load(arguments)
    args = _parsed(arguments, prog, world)
    command_line.check_files(args)
    with command_line.about(_place(args)):
        if vars(args).get("dry_run"):
            dry_run.check(args)
            if world is None or world.rank == 0:
                print(f"{args.command}: valid")
            return args, None
        should_launch(vars(args).get("ranks"))
        return args, COMMANDS[args.command](args)


def _parsed(arguments: list[str], prog: str, world: World | None) -> argparse.Namespace:
    """Return the arguments; a rank says to the others that they do not parse, before it ends."""
    if world is None:
        return parse(arguments, build_parser(prog))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse(arguments, build_parser(prog))
    except SystemExit as error:
        if not error.code:  # --help
            raise
        raise ValueError(said.getvalue().strip().removeprefix("error: ")) from None


def _place(args: argparse.Namespace) -> Path:
    """Return where the command writes, which errors that name no file are about."""
    return vars(args).get("out") or vars(args).get("plots") or Path()


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
