"""Command line of the evaluation: samples, references, results.

Under torchrun (or Slurm) the same commands share their work over all ranks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import timedelta

import relaywave

if __name__ == "__main__":
    relaywave.reject_hidden_packages("evaluation")

import torch

from dist_train.runtime.launch import launch_ranks, should_launch
from dist_train.runtime.world import init_world
from evaluation.arguments import build_parser, parse
from evaluation.commands import COMMANDS
from evaluation.rank_errors import is_lost_contact, lose_contact, reject

TIMEOUT = timedelta(hours=2)


@torch.no_grad()
def main(argv: Sequence[str] | None = None, prog: str = "python -m evaluation") -> int:
    """Run a command; returns the exit code.

    0 is success, 2 follows one line about what was wrong, 76 one about a rank that was lost.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    args = parse(arguments, build_parser(prog))
    world = None
    try:
        if hasattr(args, "ranks") and "RANK" in os.environ:
            world = init_world(TIMEOUT)
        work = COMMANDS[args.command](args)
        if work is None:
            return 0
        if should_launch(args.ranks):
            return launch_ranks("evaluation", arguments, args.ranks)
        world = world or init_world(TIMEOUT)
        work(world)
        world.close()
    except (ValueError, OSError) as error:
        return reject(error, world)
    except RuntimeError as error:
        if world is None or not is_lost_contact(error):
            raise
        return lose_contact(world)
    return 0


if __name__ == "__main__":
    sys.exit(main())
