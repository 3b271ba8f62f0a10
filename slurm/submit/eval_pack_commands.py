"""`python -m slurm sample | eval | reference | pack`: commands that share their work, as jobs.

All words that are not options of ours are passed on to `python -m evaluation` or
`python -m data_pipelines`, which judge them before anything is queued. With --dependency, what they
read may be made by the jobs that are waited for.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from slurm.jobs.jobs import CommandJob
from slurm.resources import check_job_name
from slurm.submit.arguments import add_resources, resources_of, target_of
from slurm.submit.check_arguments import check_words
from slurm.submit.launcher import Submission

EVALUATION = {"sample": "sample", "eval": "run", "reference": "reference"}
"""Our commands, and those of `python -m evaluation` that they run."""


def evaluation_command(args: argparse.Namespace) -> None:
    """Submit a command of `python -m evaluation`."""
    target, out = target_of(args), args.out.absolute()
    resources = resources_of(args, minutes=12 * 60)
    name = check_job_name(args.name or f"{args.kind}-{out.stem}")
    place = [str(out)] if args.kind == "reference" else ["--out", str(out)]
    words = (EVALUATION[args.kind], *args.passed_on, *place)
    check_words("evaluation", words, inputs=not resources.dependency)
    target.check(resources, out)
    target.launch(
        Submission(
            kind=args.kind, name=name, folder=folder_of(out),
            jobs=[CommandJob("evaluation", words)],
            resources=resources, site=target.site, cluster=target.cluster,
        )
    )  # fmt: skip


def pack_command(args: argparse.Namespace) -> None:
    """Submit a pack: an array of shares, and a job that joins them."""
    target, out = target_of(args), args.destination.absolute()
    resources = resources_of(args, minutes=12 * 60)
    name = check_job_name(args.name or f"pack-{out.name}")
    source = [str(args.source.absolute())] if args.source else []
    words = ("pack", args.pack_kind, *source, str(out), *args.passed_on)
    if args.tasks < 1:
        raise ValueError(f"--tasks={args.tasks} must be at least 1")
    check_words("data_pipelines", words, inputs=not resources.dependency)
    target.check(resources, out)
    shares = [(*words, "--shard", f"{number}/{args.tasks}") for number in range(args.tasks)]
    if target.cluster != "slurm":
        shares = [words]
    first = Submission(
        kind="pack", name=name, folder=folder_of(out),
        jobs=[CommandJob("data_pipelines", share) for share in shares],
        resources=resources, site=target.site, cluster=target.cluster,
    )  # fmt: skip
    record = target.launch(first)
    if target.cluster != "slurm":
        return
    dependency = f"afterok:{record.job_id if record else 'JOB_OF_THE_SHARES'}"
    target.launch(finishing(first, name, (*words, "--finish"), dependency))


def finishing(first: Submission, name: str, words: tuple[str, ...], dependency: str) -> Submission:
    """Return the submission that joins what an array of shares wrote."""
    return replace(
        first,
        kind="pack-finish",
        name=f"{name}-finish",
        jobs=[CommandJob("data_pipelines", words)],
        resources=replace(first.resources, dependency=dependency),
    )


def folder_of(product: Path) -> Path:
    """Return the folder whose `slurm/` has the jobs of a product.

    It is the run folder that the product lies in, or else a folder beside the product.
    """
    for parent in product.parents:
        if (parent / "config.json").exists() and (parent / "snapshots").is_dir():
            return parent
    return product.with_name(f"{product.name}.jobs")


def add_sample(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sample`."""
    _add_evaluation(parser, "sample", "folder of the images")


def add_eval(parser: argparse.ArgumentParser) -> None:
    """Add the options of `eval`."""
    _add_evaluation(parser, "eval", "the result (.json)")


def add_reference(parser: argparse.ArgumentParser) -> None:
    """Add the options of `reference`."""
    _add_evaluation(parser, "reference", "the statistics (.npz)")


def _add_evaluation(parser: argparse.ArgumentParser, kind: str, what: str) -> None:
    parser.description = f"Runs `python -m evaluation {EVALUATION[kind]}` with all further words."
    parser.add_argument("--out", type=Path, required=True, help=what)
    add_resources(parser)
    parser.set_defaults(command=evaluation_command, kind=kind, passed_on=[])


def add_pack(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pack`."""
    parser.description = "Runs `python -m data_pipelines pack` with all further words."
    parser.add_argument("pack_kind", metavar="KIND", help="kind of the source")
    parser.add_argument("source", type=Path, nargs="?", help="what to pack")
    parser.add_argument("destination", type=Path, help="folder of the set")
    parser.add_argument("--tasks", type=int, default=16, help="array tasks that share the work")
    add_resources(parser)
    parser.set_defaults(command=pack_command, passed_on=[])
