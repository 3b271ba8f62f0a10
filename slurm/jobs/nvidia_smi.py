"""What is wrong with a node's GPUs, as `nvidia-smi` has it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence

SECONDS = 60.0
"""A GPU that fell off its bus often shows by no answer at all."""
SLOWDOWNS = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
"""Reasons for which the hardware itself lowers the clocks: heat, or too little power."""
REASONS = ("clocks_event_reasons", "clocks_throttle_reasons")
"""What drivers call the reasons, the newer name first."""


class NvidiaSmiError(Exception):
    """It is there and fails: a GPU or the driver does not answer."""


def gpu_problems(expected: int) -> Iterator[str]:
    """Yield what makes the GPUs of this node unfit; nothing where there is no `nvidia-smi`.

    Args:
        expected: GPUs that the job requested of the node.
    """
    try:
        gpus = _query("name")
        if gpus is None:
            return
        if len(gpus) < expected:
            yield f"nvidia-smi shows {len(gpus)} of {expected} GPUs"
        yield from _memory_problems()
        yield from _clock_problems()
    except NvidiaSmiError as error:
        yield str(error)


def _memory_problems() -> Iterator[str]:
    for gpu, count in _query("ecc.errors.uncorrected.volatile.total") or ():
        if count.isdecimal() and int(count):
            yield f"GPU {gpu} has {count} uncorrected ECC errors"
    for gpu, pending, failed in _query("remapped_rows.pending", "remapped_rows.failure") or ():
        if "Yes" in (pending, failed):
            yield f"GPU {gpu} has rows of its memory to remap: it needs a reset, or to be replaced"


def _clock_problems() -> Iterator[str]:
    for kind in REASONS:
        rows = _query("clocks.sm", *(f"{kind}.{reason}" for reason in SLOWDOWNS))
        if rows is None:
            continue
        for gpu, clock, *active in rows:
            why = [reason for reason, text in zip(SLOWDOWNS, active, strict=True)
                   if text == "Active"]  # fmt: skip
            if why:
                yield f"GPU {gpu} is slowed down to {clock} MHz ({', '.join(why)})"
        return


def _query(*fields: str) -> list[list[str]] | None:
    """Return a row for each GPU: its index, and the fields.

    None if there is no nvidia-smi, or it does not know a field: drivers differ in them.
    """
    command = ["nvidia-smi", f"--query-gpu=index,{','.join(fields)}",
               "--format=csv,noheader,nounits"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        raise NvidiaSmiError(f"nvidia-smi did not answer in {SECONDS:.0f} s") from None
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode and "not a valid field" in done.stdout + done.stderr:
        return None
    if done.returncode:
        said = [*done.stderr.splitlines(), *lines, f"exit code {done.returncode}"]
        raise NvidiaSmiError(f"nvidia-smi: {next(text for text in said if text.strip()).strip()}")
    return [_row(line, fields) for line in lines]


def _row(line: str, fields: Sequence[str]) -> list[str]:
    """Return the values of a line; one of another form is about a GPU that does not answer."""
    values = [value.strip() for value in line.split(",")]
    if len(values) != 1 + len(fields) or not values[0].isdecimal():
        raise NvidiaSmiError(f"nvidia-smi: {line.strip()}")
    return values
