"""Judging at submission the words that a job will hand to another of relaywave's commands.

The command itself judges them, with its own parser and its own checks, as far as it can without
beginning: a wrong protocol, kind, seed or path is known before anything waits in a queue.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def check_words(module: str, words: Sequence[str], *, inputs: bool = True) -> None:
    """Check `python -m MODULE WORDS`.

    Args:
        module: `evaluation` or `data_pipelines`.
        words: The command line.
        inputs: Whether what it reads must be there already.

    Raises:
        ValueError: It would be refused; the message is one line.
    """
    if module == "evaluation":
        _check_evaluation(words, inputs)
    elif inputs:
        from data_pipelines.__main__ import check_pack

        in_one_line(lambda: check_pack(words))


def check_protocol(words: Sequence[str]) -> None:
    """Check words of `python -m evaluation run` that snapshots which are yet to come will follow.

    Raises:
        ValueError: They would be refused; the message is one line.
    """
    reference = _check_evaluation(["run", "SNAPSHOT", *words], inputs=False).reference
    if not reference.exists():
        raise FileNotFoundError(f"{reference} does not exist")


def _check_evaluation(words: Sequence[str], inputs: bool) -> argparse.Namespace:
    from evaluation.__main__ import COMMANDS
    from evaluation.generate import parse_seeds
    from evaluation.options import parse

    args = in_one_line(lambda: parse(words))
    _check_detector(args)
    if getattr(args, "seeds", ""):
        parse_seeds(args.seeds)
    if inputs:
        in_one_line(lambda: COMMANDS[args.command](args))
        for path in (*getattr(args, "source", ()), getattr(args, "reference", None)):
            if path is not None and "=" not in str(path) and not Path(path).exists():
                raise FileNotFoundError(f"{path} does not exist")
    return args


def _check_detector(args: argparse.Namespace) -> None:
    """Check the detector that `run` and `reference` use, its weights, and the metrics."""
    from evaluation.detector_kinds import DETECTORS
    from evaluation.detectors import DetectorConfig
    from evaluation.metrics import KINDS
    from evaluation.protocols import find_protocol

    if "detector" not in args:
        return
    protocol = find_protocol(args.protocol) if getattr(args, "protocol", "") else None
    name = protocol.detector if protocol else args.detector
    if args.weights or name != "effnet_lite0":  # the one whose weights are in the package
        weights = DetectorConfig(name, args.weights).weights_path()
        if not weights.exists():
            raise FileNotFoundError(f"the detector's weights {weights} do not exist")
    pipelines = DETECTORS[name].pipelines
    if args.pipeline and args.pipeline not in pipelines:
        raise ValueError(f"--pipeline={args.pipeline}: {name} takes {', '.join(pipelines)}")
    for metric in filter(None, getattr(args, "metrics", "").split(",")):
        if metric.partition(":")[0] not in KINDS:
            raise ValueError(f"metric {metric!r} is not one of {', '.join(KINDS)}")


def in_one_line(ask: Callable[[], T]) -> T:
    """Call what may end with a usage message; raises ValueError with its last line instead."""
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            return ask()
    except SystemExit:
        lines = said.getvalue().splitlines() or ["it was refused"]
        raise ValueError(lines[-1].partition("error: ")[2] or lines[-1]) from None
