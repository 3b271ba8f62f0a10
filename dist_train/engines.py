"""DeepSpeed behind a narrow interface: one engine per network, and what each rank holds of it.

The only file that imports deepspeed. It owns these rules (spec/FIELD.md section 4, all of them
silent or obscure when broken):

* Losses call the raw modules, never the engine: output hooks of the engine fire inside
  `autograd.grad` and make R1 silently wrong under ZeRO-1. Hence precision belongs to the network
  (float32 weights, compute dtype inside), and DeepSpeed always runs in float32.
* One backward call per micro-batch and network: of several, ZeRO-1/2 keep only the last.
* While one network is updated, the others are frozen (`updating_only`), else their gradients leak.
* We pass our own torch optimizer; DeepSpeed's name lookup may turn Adam into AdamW.
* DeepSpeed clips gradients to norm 1 unless it is told not to.
* ZeRO-3 releases weights outside the engine's forward, so raw-module losses cannot use it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from dist_train.config import AdamConfig
from dist_train.distributed import World

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """A contiguous range of one parameter's flattened float32 master weights, held by this rank.

    Attributes:
        name: Name of the parameter in its network.
        start: First element of the range in the flattened parameter.
        weight: The master weights, a 1-D view that the optimizer updates in place.
        moments: Adam's moments, 1-D views by name; empty before the first update.
    """

    name: str
    start: int
    weight: Tensor
    moments: Mapping[str, Tensor]


class Engine:
    """A network, its optimizer and their sharding.

    Args:
        network: The module, float32, on the world's device. The weights of rank 0 win.
        adam: Optimizer settings.
        world: The process group.
        zero_stage: 0 (replicated), 1 (optimizer sharded) or 2 (gradients sharded as well).
        micro_batch_size: Samples per rank and backward call.
        accumulation_steps: Backward calls per update.
    """

    def __init__(
        self,
        network: nn.Module,
        adam: AdamConfig,
        *,
        world: World,
        zero_stage: int,
        micro_batch_size: int,
        accumulation_steps: int,
    ) -> None:
        deepspeed = _import_deepspeed(world)
        self.network = network
        self.updates = 0
        self.zero_stage = zero_stage
        self._world = world
        self._optimizer = torch.optim.Adam(
            network.parameters(), lr=adam.lr, betas=adam.betas, eps=adam.eps
        )
        self._engine, self._sharded, _, _ = deepspeed.initialize(
            model=network,
            optimizer=self._optimizer,
            config={
                "train_micro_batch_size_per_gpu": micro_batch_size,
                "gradient_accumulation_steps": accumulation_steps,
                "zero_optimization": {"stage": zero_stage},
                "zero_allow_untested_optimizer": True,
                "gradient_clipping": adam.max_gradient_norm or 0.0,
                "steps_per_print": 10**12,
            },
        )

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's mean loss (averaged over micro-batches)."""
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> None:
        """End a micro-batch; on the last one of an update, average over ranks and apply Adam."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        boundary = self._engine.is_gradient_accumulation_boundary()
        self._engine.step()
        self.updates += int(boundary)

    def gradient_norm(self) -> float:
        """Return the global L2 norm of the last update's gradient (NaN before the first)."""
        norm = self._engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def held(self) -> list[Fragment]:
        """Return what this rank's optimizer works on: all under ZeRO-0, else its partition."""
        named = dict(self.network.named_parameters())
        if self.zero_stage == 0:
            return [
                Fragment(name, 0, p.detach().view(-1), self._moments(p, 0, p.numel()))
                for name, p in named.items()
            ]
        return [
            Fragment(
                name,
                mapping.lp_fragment_address.start,
                mapping.hp_fragment,
                self._moments(
                    self._sharded.single_partition_of_fp32_groups[mapping.param_group_index],
                    mapping.hp_fragment_address.start,
                    mapping.hp_fragment_address.numel,
                ),
            )
            for name, p in named.items()
            if (mapping := getattr(p, "_hp_mapping", None)) is not None
        ]

    def owned(self) -> list[Fragment]:
        """Return this rank's part of a disjoint cover of all parameters (checkpoints, EMA)."""
        fragments = self.held()
        if self.zero_stage > 0 or self._world.size == 1:
            return fragments
        total = sum(fragment.weight.numel() for fragment in fragments)
        first = total * self._world.rank // self._world.size
        last = total * (self._world.rank + 1) // self._world.size
        return list(_cut(fragments, first, last))

    def begin_restore(self, updates: int) -> list[Fragment]:
        """Return the held fragments, moments allocated, to be overwritten with a saved state.

        The network's own weights are not touched: the caller sets them to the same values.
        """
        self.updates = updates
        for group in self._optimizer.param_groups if updates else ():
            for parameter in group["params"]:
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(updates)),
                    **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
                }
        return self.held()

    def close(self) -> None:
        """Remove DeepSpeed's hooks from the network."""
        self._engine.destroy()

    def _moments(self, parameter: Tensor, start: int, numel: int) -> dict[str, Tensor]:
        state: dict[Any, Any] = self._optimizer.state.get(parameter, {})
        return {
            moment: state[moment].view(-1).narrow(0, start, numel)
            for moment in MOMENTS
            if moment in state
        }


@contextlib.contextmanager
def updating_only(name: str, networks: Mapping[str, nn.Module]) -> Iterator[None]:
    """Freeze every network but one: no gradients are computed for, or leak into, the others."""
    for other, network in networks.items():
        network.requires_grad_(other == name)
    try:
        yield
    finally:
        for network in networks.values():
            network.requires_grad_(True)


def _cut(fragments: list[Fragment], first: int, last: int) -> Iterator[Fragment]:
    """Yield the parts of `fragments`, laid end to end, that fall in the range [first, last)."""
    offset = 0
    for fragment in fragments:
        size = fragment.weight.numel()
        low, high = max(first - offset, 0), min(last - offset, size)
        offset += size
        if low < high:
            yield Fragment(
                fragment.name,
                fragment.start + low,
                fragment.weight[low:high],
                {name: values[low:high] for name, values in fragment.moments.items()},
            )


def _import_deepspeed(world: World) -> Any:
    """Import and initialise DeepSpeed: quietly, and without compiling anything."""
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # DeepSpeed refuses to start without
    # DeepSpeed calls collectives that this torch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    # On the CPU DeepSpeed would build a C++ op for shared-memory all-reduce inside
    # init_distributed: it needs a compiler, and a build that is killed leaves a lock in the cache
    # that hangs every later run without a message.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        _ensure_group(world)
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed


def _ensure_group(world: World) -> None:
    """Give a world of one process the process group that DeepSpeed insists on."""
    if not dist.is_initialized():
        backend = "gloo" if world.device.type == "cpu" else "cpu:gloo,cuda:nccl"
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
