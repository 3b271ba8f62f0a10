"""`relaywave slurm sample | eval | eval-sweep | reference | pack`: ranks or tasks share the work.

Arguments that are not options of ours are passed on to `relaywave eval` or
`relaywave data`, and validated by that command at submission. With --dependency, what
they read may be made by the jobs that are waited for.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.command_line import check_least
from models.grid import grid_points
from slurm.jobs.jobs import CommandJob
from slurm.submit.arguments import SubmitOptions, add_submit_options, submit_options
from slurm.submit.check_arguments import check_arguments
from slurm.submit.launcher import Submission

EVALUATION = {"sample": "sample", "eval": "run", "reference": "reference"}
"""Our commands, and those of `relaywave eval` that they run."""
DEFAULT_MINUTES = 12 * 60


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """A command of `relaywave eval` to submit.

    Attributes:
        kind: `sample`, `eval` or `reference`.
        passed_on: Its arguments, without where the product goes.
        out: The product: a directory of images, a result, or statistics.
        submit: Where to, and what the job requests.
    """

    kind: str
    passed_on: Sequence[str]
    out: Path
    submit: SubmitOptions

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of `relaywave eval`."""
        product = [str(self.out)] if self.kind == "reference" else ["--out", str(self.out)]
        return (EVALUATION[self.kind], *self.passed_on, *product)


def submit_evaluation(request: EvaluationRequest) -> None:
    """Check and submit a command of `relaywave eval`."""
    target, out = request.submit.target, request.out
    resources = request.submit.resources(minutes=DEFAULT_MINUTES)
    name = request.submit.job_name(f"{request.kind}-{out.stem}")
    check_arguments("evaluation", request.arguments, inputs=not resources.dependency)
    target.check(resources, out)
    target.launch(
        Submission(
            kind=request.kind, name=name, root=job_root(out),
            jobs=[CommandJob("evaluation", request.arguments)],
            resources=resources, site=target.site, executor=target.executor,
        )
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvaluationSweepRequest:
    """A sweep of evaluations to submit.

    Attributes:
        grid: Axes of the grid, see `models.grid`.
        passed_on: Further arguments of `relaywave eval sweep`.
        out: Directory of the results.
        parallel: How many points may be evaluated at once; 0 is the site's limit.
        submit: Where to, and what each job requests.
    """

    grid: Sequence[str]
    passed_on: Sequence[str]
    out: Path
    parallel: int
    submit: SubmitOptions

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of `relaywave eval` for all points and the table."""
        axes = [f"--grid={axis}" for axis in self.grid]
        return ("sweep", *self.passed_on, *axes, "--out", str(self.out))


def submit_evaluation_sweep(request: EvaluationSweepRequest) -> None:
    """Check and submit a sweep: an array of its points, and a job that writes the tables of all.

    Without Slurm, one job does all points in order.
    """
    target, out, arguments = request.submit.target, request.out, request.arguments
    resources = request.submit.resources(minutes=DEFAULT_MINUTES)
    name = request.submit.job_name(f"eval-sweep-{out.name}")
    check_arguments("evaluation", arguments, inputs=not resources.dependency)
    target.check(resources, out)
    tables = Submission(
        kind="eval-sweep", name=name, root=job_root(out / "table"),
        jobs=[CommandJob("evaluation", arguments)],
        resources=resources, site=target.site, executor=target.executor,
    )  # fmt: skip
    if target.executor != "slurm":
        target.launch(tables)
        return
    parallel = request.parallel or resources.array_parallelism
    points = [(*arguments, "--point", point) for point in grid_points(request.grid)]
    record = target.launch(
        replace(
            tables, jobs=[CommandJob("evaluation", point) for point in points],
            resources=replace(resources, array_parallelism=parallel),
        )
    )  # fmt: skip
    dependency = f"afterok:{record.job_id if record else 'JOB_OF_THE_POINTS'}"
    target.launch(
        replace(
            tables, kind="eval-sweep-table", name=f"{name}-table",
            resources=replace(resources, dependency=dependency),
        )
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PackRequest:
    """A set to pack by jobs.

    Attributes:
        kind: Kind of the source.
        source: What to pack; None for kinds that need none.
        passed_on: Further arguments of `relaywave data pack`.
        destination: Directory of the set.
        tasks: Array tasks that share the work.
        submit: Where to, and what each job requests.
    """

    kind: str
    source: Path | None
    passed_on: Sequence[str]
    destination: Path
    tasks: int
    submit: SubmitOptions

    def __post_init__(self) -> None:
        if self.tasks < 1:
            raise ValueError(f"--tasks={self.tasks} must be at least 1")

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of `relaywave data`."""
        source = [str(self.source)] if self.source else []
        return ("pack", self.kind, *source, str(self.destination), *self.passed_on)


def submit_pack(request: PackRequest) -> None:
    """Check and submit a pack: an array that shares the work, and a job that joins its parts."""
    target, out, arguments = request.submit.target, request.destination, request.arguments
    resources = request.submit.resources(minutes=DEFAULT_MINUTES)
    name = request.submit.job_name(f"pack-{out.name}")
    check_arguments("data_pipelines", arguments, inputs=not resources.dependency)
    target.check(resources, out)
    parts = [(*arguments, "--shard", f"{n}/{request.tasks}") for n in range(request.tasks)]
    if target.executor != "slurm":
        parts = [arguments]
    first = Submission(
        kind="pack", name=name, root=job_root(out),
        jobs=[CommandJob("data_pipelines", part) for part in parts],
        resources=resources, site=target.site, executor=target.executor,
    )  # fmt: skip
    record = target.launch(first)
    if target.executor != "slurm":
        return
    dependency = f"afterok:{record.job_id if record else 'JOB_OF_THE_SHARES'}"
    target.launch(
        replace(
            first, kind="pack-finish", name=f"{name}-finish",
            jobs=[CommandJob("data_pipelines", (*arguments, "--finish"))],
            resources=replace(resources, dependency=dependency),
        )
    )  # fmt: skip


def job_root(product: Path) -> Path:
    """Return the directory whose `slurm/` holds the jobs of a product.

    It is the run directory that contains the product, or else `<product>.jobs`.
    """
    for parent in product.parents:
        if (parent / "config.json").exists() and (parent / "snapshots").is_dir():
            return parent
    return product.with_name(f"{product.name}.jobs")


def evaluation_command(args: argparse.Namespace) -> None:
    """Submit a command of `relaywave eval`."""
    submit_evaluation(
        EvaluationRequest(
            kind=args.kind,
            passed_on=args.passed_on,
            out=args.out.absolute(),
            submit=submit_options(args),
        )
    )


def evaluation_sweep_command(args: argparse.Namespace) -> None:
    """Submit a sweep of evaluations."""
    check_least(args, parallel=1)
    submit_evaluation_sweep(
        EvaluationSweepRequest(
            grid=args.grid,
            passed_on=args.passed_on,
            out=args.out.absolute(),
            parallel=args.parallel or 0,
            submit=submit_options(args),
        )
    )


def pack_command(args: argparse.Namespace) -> None:
    """Submit the packing of a set."""
    submit_pack(
        PackRequest(
            kind=args.pack_kind,
            source=args.source.absolute() if args.source else None,
            passed_on=args.passed_on,
            destination=args.destination.absolute(),
            tasks=args.tasks,
            submit=submit_options(args),
        )
    )


def add_sample(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sample`."""
    _add_evaluation(parser, "sample", "directory of the images")


def add_eval(parser: argparse.ArgumentParser) -> None:
    """Add the options of `eval`."""
    _add_evaluation(parser, "eval", "the result (.json)")


def add_reference(parser: argparse.ArgumentParser) -> None:
    """Add the options of `reference`."""
    _add_evaluation(parser, "reference", "the statistics (.npz)")


def add_evaluation_sweep(parser: argparse.ArgumentParser) -> None:
    """Add the options of `eval-sweep`."""
    command = "relaywave eval sweep"
    parser.description = f"Runs `{command}`; arguments that are not listed here are passed on."
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument(
        "--grid", action="append", required=True, metavar="key=a,b,...", help="an axis of the grid"
    )
    parser.add_argument("--parallel", type=int, help="how many points may be evaluated at once")
    add_submit_options(parser)
    parser.set_defaults(command=evaluation_sweep_command, passed_on=[])


def _add_evaluation(parser: argparse.ArgumentParser, kind: str, product: str) -> None:
    command = f"relaywave eval {EVALUATION[kind]}"
    parser.description = f"Runs `{command}`; arguments that are not listed here are passed on."
    parser.add_argument("--out", type=Path, required=True, help=product)
    add_submit_options(parser)
    parser.set_defaults(command=evaluation_command, kind=kind, passed_on=[])


def add_pack(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pack`."""
    command = "relaywave data pack"
    parser.description = f"Runs `{command}`; arguments that are not listed here are passed on."
    parser.add_argument("pack_kind", metavar="KIND", help="kind of the source")
    parser.add_argument("source", type=Path, nargs="?", help="what to pack")
    parser.add_argument("destination", type=Path, help="directory of the set")
    parser.add_argument("--tasks", type=int, default=16, help="array tasks that share the work")
    add_submit_options(parser)
    parser.set_defaults(command=pack_command, passed_on=[])
