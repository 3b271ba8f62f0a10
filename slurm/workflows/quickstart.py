"""The quickstart as jobs: both models on the embedded photographs, with the offline detector."""

from __future__ import annotations

from slurm.workflows.steps import (
    Inputs,
    evaluate_step,
    pack_steps,
    reference_step,
    sample_step,
    train_step,
    with_table,
)
from slurm.workflows.workflow import Workflow

METRICS = ("--metrics", "fd:block4,fd:block10", "--batch-size", "32")


def quickstart(inputs: Inputs) -> Workflow:
    """RDM (16 -> 64) and WaveDiff (64) on photographs: minutes on a few cores."""
    data, both = inputs.root / "data", ("edm16", "relay64")
    return with_table(
        "quickstart",
        inputs,
        *pack_steps(inputs, "images" if inputs.source else "photographs", (64,)),
        train_step(inputs, "edm16", "quickstart_edm16", data),
        train_step(inputs, "relay64", "quickstart_relay64", data),
        train_step(inputs, "wavediff64", "quickstart_wavediff64", data),
        reference_step(inputs, data),
        sample_step(inputs, "rdm-samples", both),
        sample_step(inputs, "wavediff-samples", ("wavediff64",)),
        evaluate_step(inputs, "rdm", both, "RDM", *METRICS),
        evaluate_step(inputs, "wavediff", ("wavediff64",), "WaveDiff", *METRICS),
    )


WORKFLOWS = (quickstart,)
