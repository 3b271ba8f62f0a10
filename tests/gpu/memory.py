"""Part e: the memory that steps really need against what `plan` says."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dist_train.planning.flops import measure_step
from dist_train.planning.hardware import find_gpu
from dist_train.planning.memory import largest_micro_batch, memory
from tests.gpu.cases import one_gpu_run, recipe_names
from tests.gpu.device import Device
from tests.gpu.ledger import Outcome, Task
from tests.gpu.throughput import stepping

TOLERANCE = 0.1
"""By how much the plan may be off: that of its tests on the processor."""


def tasks(debug: bool) -> list[Task]:
    names = recipe_names(debug)
    planned = [Task("e", f"planned/{name}", partial(check_planned, name)) for name in names]
    largest = [Task("e", f"largest/{name}", partial(check_largest, name)) for name in names]
    return [*planned, *largest]


def check_planned(name: str, device: Device, work: Path) -> Outcome:
    """Compare the peak of building a run and two of its steps with the plan's total."""
    config = one_gpu_run(name)
    micro = config.micro_batch_size or 1

    def steps() -> None:
        with stepping(config, device, work) as (_, step):
            step(0)
            step(0)  # has moments

    measured = device.peak_bytes(steps)
    planned = memory(config, measure_step(config.objective, micro), 0, 1).total
    outcome = Outcome({"measured": measured, "planned": planned})
    if not device.debug:  # tables and small tensors, which are not planned, are nothing next to it
        outcome.bound("off_by", abs(measured / planned - 1), TOLERANCE)
    return outcome


def check_largest(name: str, device: Device, work: Path) -> Outcome:
    """Train two steps at the largest micro-batch that the plan says fits on this card."""
    config = one_gpu_run(name)
    gpu = find_gpu(str(device.describe()["card"]))
    if gpu is None:
        return Outcome({"note": "the plan does not know this card"})
    roomy = one_gpu_run(name, micro=4096)
    micro = largest_micro_batch(roomy, 0, 1, gpu)
    if not micro:
        return Outcome({"note": "the plan says that not even the smallest fits"})
    with stepping(one_gpu_run(name, micro=micro), device, work) as (_, step):
        peak = device.peak_bytes(lambda: (step(0), step(0)))
    del config
    return Outcome({"micro_batch_size": micro, "peak_bytes_of_a_step": peak})
