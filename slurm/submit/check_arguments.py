"""Validating at submission the arguments that a job passes on to another relaywave command.

That command validates them itself, with its own parser and a dry run: a wrong protocol, kind, seed
or path is reported before anything waits in a queue.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import TypeVar

from models.safe_files.nearest import check_there

T = TypeVar("T")


def check_arguments(
    module: str, arguments: Sequence[str], *, inputs: bool = True
) -> tuple[str, ...] | None:
    """Check `python -m MODULE ARGUMENTS`.

    Args:
        module: `evaluation` or `data_pipelines`.
        arguments: The command line.
        inputs: Whether what it reads must exist already.

    Returns:
        The names of the classes of a set that it would pack; None if they are not known yet.

    Raises:
        ValueError: They are invalid; the message is one line.
    """
    if module == "evaluation":
        from evaluation.dry_run import dry_run

        in_one_line(lambda: dry_run(arguments, inputs=inputs))
    elif inputs:
        from data_pipelines.arguments import build_parser
        from data_pipelines.pack.command import check_pack

        return in_one_line(lambda: check_pack(build_parser().parse_args(arguments)))
    return None


def check_protocol(arguments: Sequence[str]) -> None:
    """Check arguments of `relaywave eval run` for snapshots that do not exist yet.

    Raises:
        ValueError: They are invalid, or give several results; the message is one line.
    """
    from evaluation.dry_run import dry_run
    from evaluation.request import evaluations_of, references_of

    parsed = in_one_line(lambda: dry_run(["run", "SNAPSHOT", *arguments], inputs=False))
    results = {r.best_out or r.out: r for r in evaluations_of(parsed, inputs=False)}
    if len(results) > 1:
        names = (r.protocol.name if r.protocol else r.detector.name for r in results.values())
        raise ValueError(
            f"the arguments give {len(results)} results ({', '.join(names)}), but a scheduled"
            " evaluation has one: schedule each by itself"
        )
    for reference in references_of(parsed):
        check_there(reference, "a statistics file or a set of images")


def in_one_line(validate: Callable[[], T]) -> T:
    """Call what may end with a usage message; raises ValueError with its last line instead."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed), redirect_stdout(io.StringIO()):
            return validate()
    except SystemExit:
        lines = printed.getvalue().splitlines() or ["the arguments are invalid"]
        raise ValueError(lines[-1].partition("error: ")[2] or lines[-1]) from None
