"""The two papers' experiments, from the downloaded images to the table of results.

Like a recipe, each is a documented function. Both stages of RDM train at the same time: stage 2
learns from blurred real images, so it needs no stage-1 samples.
"""

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

INCEPTION = ("--detector", "inception")


def rdm_imagenet256(inputs: Inputs) -> Workflow:
    """RDM on ImageNet: EDM at 64x64, relay to 256x256 with guidance, FID-50k by its protocol."""
    return _rdm(inputs, "rdm_imagenet256", "imagenet", "rdm_imagenet64", "rdm_imagenet256_guided")


def rdm_celebahq256(inputs: Inputs) -> Workflow:
    """RDM on CelebA-HQ: EDM at 64x64, relay to 256x256, FID by its protocol."""
    return _rdm(inputs, "rdm_celebahq256", "images", "rdm_celebahq64", "rdm_celebahq256")


def wavediff_cifar10(inputs: Inputs) -> Workflow:
    """WaveDiff on CIFAR-10 (32x32), FID-50k by its protocol."""
    return _wavediff(inputs, "wavediff_cifar10", "cifar10", 32, "wavediff_cifar10")


def wavediff_stl10(inputs: Inputs) -> Workflow:
    """WaveDiff on STL-10 (64x64), FID-50k by its protocol."""
    return _wavediff(inputs, "wavediff_stl10", "stl10", 64, "wavediff_stl10")


def wavediff_celebahq256(inputs: Inputs) -> Workflow:
    """WaveDiff on CelebA-HQ (256x256), FID-50k by its protocol."""
    return _wavediff(inputs, "wavediff_celebahq256", "images", 256, "wavediff_celebahq256")


def wavediff_lsun_church256(inputs: Inputs) -> Workflow:
    """WaveDiff on LSUN Church (256x256), FID-50k by its protocol."""
    return _wavediff(inputs, "wavediff_lsun_church256", "lsun", 256, "wavediff_lsun_church")


def celebahq256(inputs: Inputs) -> Workflow:
    """Both papers' models on CelebA-HQ 256x256, each by its own protocol, in one table."""
    data = inputs.root / "data"
    both = ("stage1", "stage2")
    return with_table(
        "celebahq256",
        inputs,
        *pack_steps(inputs, "images", (64, 256)),
        train_step(inputs, "stage1", "rdm_celebahq64", data / "64"),
        train_step(inputs, "stage2", "rdm_celebahq256", data / "256"),
        train_step(inputs, "wavediff", "wavediff_celebahq256", data / "256"),
        reference_step(inputs, data / "256", *INCEPTION),
        sample_step(inputs, "rdm-samples", both),
        sample_step(inputs, "wavediff-samples", ("wavediff",)),
        evaluate_step(inputs, "rdm", both, "RDM", "--protocol", "rdm_celebahq256_clean"),
        evaluate_step(
        inputs, "wavediff-result", ("wavediff",), "WaveDiff", "--protocol",
        "wavediff_celebahq256_clean",
        ),
    )  # fmt: skip


def _rdm(inputs: Inputs, name: str, kind: str, stage1: str, stage2: str) -> Workflow:
    """Return the steps of an RDM experiment; its protocol has the name of the workflow."""
    data, both = inputs.root / "data", ("stage1", "stage2")
    return with_table(
        name,
        inputs,
        *pack_steps(inputs, kind, (64, 256)),
        train_step(inputs, "stage1", stage1, data / "64"),
        train_step(inputs, "stage2", stage2, data / "256"),
        reference_step(inputs, data / "256", *INCEPTION),
        sample_step(inputs, "samples", both),
        evaluate_step(inputs, "result", both, "RDM", "--protocol", name),
    )


def _wavediff(inputs: Inputs, name: str, kind: str, resolution: int, protocol: str) -> Workflow:
    """Return the steps of a WaveDiff experiment; its recipe has the workflow's name."""
    data = inputs.root / "data"
    return with_table(
        name,
        inputs,
        *pack_steps(inputs, kind, (resolution,)),
        train_step(inputs, "wavediff", name, data),
        reference_step(inputs, data, *INCEPTION, "--pipeline", "pytorch_fid"),
        sample_step(inputs, "samples", ("wavediff",)),
        evaluate_step(inputs, "result", ("wavediff",), "WaveDiff", "--protocol", protocol),
    )


WORKFLOWS = (
    rdm_imagenet256,
    rdm_celebahq256,
    wavediff_cifar10,
    wavediff_stl10,
    wavediff_celebahq256,
    wavediff_lsun_church256,
    celebahq256,
)
