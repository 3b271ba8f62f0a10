"""GPUs that runs are planned for, and the links between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker describes it.

    Attributes:
        memory_bytes: Memory of the device.
        peak_flops: Dense bfloat16 (float16 where it has no bfloat16) operations per second.
        tf32_flops: The same of float32 products and convolutions that may use TF32.
        float32_flops: The same of those that may not.
        bandwidth: Bytes per second from and to its memory.
        link_bytes: Bytes per second to the GPUs of the same node, one way.
        bfloat16: Whether it computes in bfloat16.
    """

    memory_bytes: float
    peak_flops: float
    tf32_flops: float
    float32_flops: float
    bandwidth: float
    link_bytes: float
    bfloat16: bool = True


GPUS = {
    "v100-16g": Gpu(16e9, 125e12, 15.7e12, 15.7e12, 0.9e12, 150e9, bfloat16=False),
    "v100-32g": Gpu(32e9, 125e12, 15.7e12, 15.7e12, 0.9e12, 150e9, bfloat16=False),
    "a100-40g": Gpu(40e9, 312e12, 156e12, 19.5e12, 1.555e12, 300e9),
    "a100-80g": Gpu(80e9, 312e12, 156e12, 19.5e12, 2.039e12, 300e9),
    "h100-80g": Gpu(80e9, 989e12, 494e12, 67e12, 3.35e12, 450e9),
    "h100-pcie-80g": Gpu(80e9, 756e12, 378e12, 51e12, 2.0e12, 64e9),
    "h100-nvl-94g": Gpu(94e9, 835e12, 417e12, 60e12, 3.9e12, 300e9),
    "h200-141g": Gpu(141e9, 989e12, 494e12, 67e12, 4.8e12, 450e9),
    "b200-180g": Gpu(180e9, 2250e12, 1125e12, 75e12, 8.0e12, 900e9),
    "l40s-48g": Gpu(48e9, 362e12, 183e12, 91.6e12, 0.864e12, 32e9),
    "mi300x-192g": Gpu(192e9, 1307e12, 653e12, 163e12, 5.3e12, 448e9),
    "rtx4090-24g": Gpu(24e9, 165e12, 82.6e12, 82.6e12, 1.008e12, 32e9),
}
NETWORK_GBIT = 800.0
"""Gbit/s between a node and the others, unless something else is said."""


@dataclass(frozen=True)
class Machine:
    """Where a run is to be.

    Attributes:
        gpu: Kind of GPU.
        nodes: Number of nodes.
        gpus_per_node: GPUs of each.
        network_bytes: Bytes per second between nodes, per node and direction.
        mfu: Fraction of the GPU's peak that the networks reach, measured by a run; None estimates
            their time by roofline.
    """

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    network_bytes: float
    mfu: float | None = None

    @property
    def ranks(self) -> int:
        """Number of GPUs."""
        return self.nodes * self.gpus_per_node


def find_gpu(device_name: str) -> Gpu | None:
    """Return the GPU that CUDA calls by this name, e.g. "NVIDIA A100-SXM4-40GB"; None: unknown."""
    spelled = device_name.lower().replace(" ", "")
    named = [words for name in GPUS if (words := name.split("-"))[0] in spelled]
    if not named:
        return None
    return GPUS["-".join(max(named, key=lambda words: sum(word in spelled for word in words)))]
