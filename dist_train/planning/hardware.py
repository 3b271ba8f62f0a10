"""GPUs that runs are planned for, and the links between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker describes it.

    Attributes:
        memory_bytes: Memory of the device.
        peak_flops: Dense bfloat16 (float16 where it has no bfloat16) operations per second.
        link_bytes: Bytes per second to the GPUs of the same node, one way.
        bfloat16: Whether it computes in bfloat16.
    """

    memory_bytes: float
    peak_flops: float
    link_bytes: float
    bfloat16: bool = True


GPUS = {
    "v100-16g": Gpu(16e9, 125e12, 150e9, bfloat16=False),
    "v100-32g": Gpu(32e9, 125e12, 150e9, bfloat16=False),
    "a100-40g": Gpu(40e9, 312e12, 300e9),
    "a100-80g": Gpu(80e9, 312e12, 300e9),
    "h100-80g": Gpu(80e9, 989e12, 450e9),
    "h200-141g": Gpu(141e9, 989e12, 450e9),
    "l40s-48g": Gpu(48e9, 362e12, 32e9),
    "rtx4090-24g": Gpu(24e9, 165e12, 32e9),
}


def find_gpu(device_name: str) -> Gpu | None:
    """Return the GPU that CUDA calls by this name, e.g. "NVIDIA A100-SXM4-40GB"; None: unknown."""
    spelled = device_name.lower().replace(" ", "")
    for name, gpu in GPUS.items():
        if name.partition("-")[0] in spelled:
            return gpu
    return None
