"""`relaywave paper list | run NAME | write NAME`: the papers' experiments, one command each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from evaluation.published import tables
from models.command_line import reject_unused
from models.config_io import ConfigError
from slurm.paper.debug import DEBUG
from slurm.paper.experiments import EXPERIMENTS
from slurm.paper.plan import PaperInputs, find_experiment, plan
from slurm.paper.write import write
from slurm.submit.arguments import SubmitOptions, add_submit_options, submit_options
from slurm.workflows.command import split_options, start_workflow
from slurm.workflows.steps import Inputs

EXAMPLES = """examples:
  relaywave paper list
  relaywave paper run rdm_table3 --root paper --debug
  relaywave paper run wavediff_cifar10 --root paper --source cifar10=cifar-10-python.tar.gz
  relaywave paper run rdm_table1 --root paper --source celebahq=CelebA-HQ.zip --official official/
"""
DEBUG_MINUTES, MINUTES = 30, 24 * 60


def add_paper(parser: argparse.ArgumentParser) -> None:
    """Add the options of `paper`."""
    parser.description = "Reproduce a table or figure of the papers, from the downloaded images."
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "action", choices=("list", "run", "write"),
        help="list all; run one; write its table and figure again, from the results that exist",
    )  # fmt: skip
    parser.add_argument("name", nargs="?", help="name of an experiment, see `list`")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="[STEP:]key=value",
        help="changed settings of training, or options of a step's job",
    )  # fmt: skip
    parser.add_argument(
        "--root", type=Path, help="directory of all experiments, which share what they make there"
    )
    parser.add_argument(
        "--source", action="append", default=[], metavar="KIND=PATH",
        help="images as downloaded, by their kind: imagenet, celebahq, cifar10, stl10, lsun",
    )  # fmt: skip
    parser.add_argument("--weights", type=Path, help="weights file of Inception")
    parser.add_argument(
        "--official", type=Path, metavar="DIR",
        help="evaluate the authors' checkpoints, which are there, instead of own trainings",
    )  # fmt: skip
    parser.add_argument("--images", type=int, help="number of samples to evaluate")
    parser.add_argument("--tasks", type=int, help="array tasks of packing (default: 16)")
    parser.add_argument(
        "--debug",
        action="store_true",
        help="everything tiny, on embedded photographs, in minutes; by default on this machine; in"
        " ROOT/debug",
    )
    parser.add_argument("--tree", action="store_true", help="show the state of each step and exit")
    add_submit_options(parser)
    parser.set_defaults(command=paper_command, cluster="")


def paper_command(args: argparse.Namespace) -> None:
    """List experiments, run one, or write its table and figure."""
    if args.action == "list":
        for name in EXPERIMENTS:
            print(f"{name:22} {tables()[name].title}")
        return
    if args.name is None:
        raise ValueError("the name of an experiment is missing; `relaywave paper list` lists them")
    find_experiment(args.name)
    if args.root is None:
        raise ValueError("--root is missing: name the directory of all experiments")
    args.cluster = args.cluster or ("local" if args.debug else "slurm")
    options = submit_options(args)
    if args.action == "write":
        unused = ("source", "weights", "tasks", "tree", "overrides")
        reject_unused(args, dict.fromkeys(unused, "`write` makes nothing new"))
        for path in write(args.name, _paper(args, options, [])):
            print(path)
        return
    if args.debug:
        reject_unused(args, dict.fromkeys(("images", "weights"), "--debug has its own"))
    own, overrides = split_options(args.overrides)
    paper = _paper(args, options, overrides)
    start_workflow(plan(args.name, paper), paper.inputs, options, own, only_tree=args.tree)


def _paper(
    args: argparse.Namespace, options: SubmitOptions, overrides: Sequence[str]
) -> PaperInputs:
    on_cpu = {"gpus_per_node": 0} if args.debug else {}
    minutes = DEBUG_MINUTES if args.debug else MINUTES
    is_slurm = options.target.executor == "slurm"
    default_tasks = 1 if args.debug or not is_slurm else 16
    return PaperInputs(
        inputs=Inputs(
            root=args.root.absolute() / (DEBUG if args.debug else ""),
            weights=args.weights.absolute() if args.weights else None,
            resources=options.resources(minutes=minutes, **on_cpu),
            same_size=args.debug or "nodes" in options.requested,
            overrides=tuple(overrides),
            images=args.images,
            tasks=default_tasks if args.tasks is None else args.tasks,
        ),
        sources=_sources(args.source),
        official=args.official.absolute() if args.official else None,
        debug=args.debug,
        arrays=is_slurm,
        sized=args.debug or bool(options.requested.keys() & {"gpus_per_node", "tasks_per_node"}),
        only_tree=args.tree,
    )


def _sources(texts: Sequence[str]) -> dict[str, Path]:
    """Return image sets by their kind. Raises ConfigError for what is not KIND=PATH."""
    sources: dict[str, Path] = {}
    for text in texts:
        kind, separator, path = text.partition("=")
        if not (separator and kind and path):
            raise ConfigError(f"--source {text} is not KIND=PATH, as celebahq=CelebA-HQ.zip")
        if kind in sources:
            raise ConfigError(f"--source {kind}=... is given twice; keep one of them")
        sources[kind] = Path(path).absolute()
    return sources
