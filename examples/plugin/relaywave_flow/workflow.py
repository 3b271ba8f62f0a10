"""A workflow: pack, train, reference, evaluate, table."""

from __future__ import annotations

from slurm.workflows import WORKFLOWS
from slurm.workflows.steps import (
    Inputs,
    evaluate_step,
    pack_steps,
    reference_step,
    train_step,
    with_table,
)
from slurm.workflows.workflow import Workflow


def flow_debug(inputs: Inputs) -> Workflow:
    """Flow matching on a .npy file, with the protocol flow_debug."""
    data = inputs.root / "data"
    settings = ("data.backend=webdataset", "objective.unet.label_dim=0")
    return with_table(
        "flow_debug",
        inputs,
        *pack_steps(inputs, "npy", (16,)),
        train_step(inputs, "flow", "flow_debug", data, *settings),
        reference_step(inputs, data, "--protocol", "flow_debug"),
        evaluate_step(inputs, "result", ("flow",), "Flow", "--protocol", "flow_debug"),
    )


WORKFLOWS.register("flow_debug", flow_debug)
