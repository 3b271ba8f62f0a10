"""Judging at submission the words that a job will hand to another of relaywave's commands.

The command itself judges them, with its own parser and its own checks, as far as it can without
beginning: a wrong protocol, kind, seed or path is known before anything waits in a queue.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import TypeVar

T = TypeVar("T")


def check_words(
    module: str, words: Sequence[str], *, inputs: bool = True
) -> tuple[str, ...] | None:
    """Check `python -m MODULE WORDS`.

    Args:
        module: `evaluation` or `data_pipelines`.
        words: The command line.
        inputs: Whether what it reads must be there already.

    Returns:
        The names of the classes of a set that is to be packed, None if they are not known yet.

    Raises:
        ValueError: It would be refused; the message is one line.
    """
    if module == "evaluation":
        from evaluation.dry_run import judge

        in_one_line(lambda: judge(words, inputs=inputs))
    elif inputs:
        from data_pipelines.pack.command import check_pack

        return in_one_line(lambda: check_pack(words[1:]))
    return None


def check_protocol(words: Sequence[str]) -> None:
    """Check words of `python -m evaluation run` that snapshots which are yet to come will follow.

    Raises:
        ValueError: They would be refused; the message is one line.
    """
    from evaluation.dry_run import judge

    args = in_one_line(lambda: judge(["run", "SNAPSHOT", *words], inputs=False))
    if not args.reference.exists():
        raise FileNotFoundError(f"{args.reference} does not exist")


def in_one_line(ask: Callable[[], T]) -> T:
    """Call what may end with a usage message; raises ValueError with its last line instead."""
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            return ask()
    except SystemExit:
        lines = said.getvalue().splitlines() or ["it was refused"]
        raise ValueError(lines[-1].partition("error: ")[2] or lines[-1]) from None
