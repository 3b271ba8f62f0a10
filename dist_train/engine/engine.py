"""DeepSpeed behind a narrow interface: one engine per network, and what each rank holds of it.

The only file that imports deepspeed. Its rules (docs/reference/deepspeed.md#4; `check_stage`
rejects what cannot work):

* Losses call the raw modules, not the engine, up to ZeRO-2. The engine's output hooks also fire
  inside `autograd.grad`: R1 through the engine fails, or happens to work after steps without it.
  Hence precision belongs to the network (float32 weights, compute dtype inside), and DeepSpeed
  always runs in float32.
* Under ZeRO-3 losses call the engine (`Engine.called`), DeepSpeed's documented entry, which keeps
  track of gathered weights. R1 fails there, and a second network is trained silently wrong.
* One backward call per micro-batch and network: of several, ZeRO-1/2 silently keep only the last. A
  second call raises.
* While one network is updated, the others are frozen (`updating_only`), else their gradients leak.
* We pass our own torch optimizer; DeepSpeed's name lookup may turn Adam into AdamW.
* DeepSpeed clips gradients to norm 1 unless clipping is set to 0.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from dist_train.config import AdamConfig, ShardingConfig
from dist_train.engine.deepspeed_config import check_version, engine_settings, used_stage
from dist_train.engine.gradient_reduction import average_gradients, scatter_gradients
from dist_train.engine.loss_scaling import CheckedAdam, LossScale, partitioned_norm
from dist_train.engine.shards import ParameterShard, share
from dist_train.runtime.world import World
from models.config_io import ConfigError

__all__ = ["MOMENTS", "Engine", "ParameterShard", "parameter_lists", "updating_only"]

MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine:
    """A network, its optimizer and their sharding.

    Args:
        network: The module, float32, on the world's device. The weights of rank 0 win.
        adam: Optimizer settings.
        sharding: What each rank holds. One rank without offloading has nothing to shard, and is
            spared the copies that sharding makes.
        world: The process group.
        micro_batch_size: Samples per rank and backward call.
        accumulation_steps: Backward calls per update.
        scale_loss: Whether gradients pass through float16 and need a dynamic loss scale.
        explosion: Updates whose gradient's norm is above this multiple of the last one's are
            skipped (up to ZeRO-2 without offloading); None skips only what is not finite.

    Raises:
        ConfigError: `sharding.deepspeed` contradicts what this engine has to set, or another
            version of DeepSpeed is installed.
    """

    def __init__(
        self,
        network: nn.Module,
        adam: AdamConfig,
        sharding: ShardingConfig,
        *,
        world: World,
        micro_batch_size: int,
        accumulation_steps: int,
        scale_loss: bool = False,
        explosion: float | None = None,
    ) -> None:
        deepspeed = _import_deepspeed(world)
        self.network = network
        self.zero_stage = used_stage(sharding, world.size)
        self.loss_scale = LossScale(scale_loss, explosion)
        self.shapes = {name: p.shape for name, p in network.named_parameters()}
        self.updates = 0
        self._stepping = False
        self._world = world
        clip = adam.max_gradient_norm or 0.0
        settings: dict[str, Any] = {
            "lr": adam.lr, "betas": adam.betas, "eps": adam.eps,
            "fused": True,  # one pass over the weights: on CPUs in 2/5 of the time
        }  # fmt: skip
        self._optimizer: torch.optim.Adam = (
            torch.optim.Adam(network.parameters(), **settings)
            if self.zero_stage
            else CheckedAdam(network.parameters(), self.loss_scale, clip, **settings)
        )
        config = engine_settings(
            sharding,
            micro_batch_size=micro_batch_size,
            accumulation_steps=accumulation_steps,
            clip=clip if self.zero_stage else 0.0,
            parameters=sum(shape.numel() for shape in self.shapes.values()),
        )
        config["zero_optimization"]["stage"] = self.zero_stage
        self._engine, self._sharded, _, _ = deepspeed.initialize(
            model=network, optimizer=self._optimizer, config=config
        )
        if self.zero_stage:
            self._sharded.loss_scaler = self.loss_scale
        if self.zero_stage in (1, 2):
            norm = functools.partial(partitioned_norm, self.loss_scale)
            self._sharded.get_grad_norm_direct = norm
        self._parameters = list(network.parameters())
        self._reduces = self.zero_stage == 0 or (
            self.zero_stage == 1 and sharding.offload == "none"
        )
        if self._reduces:
            self._take_over_reduction()

    @property
    def called(self) -> nn.Module:
        """What losses must call to run the network."""
        return self._engine if self.zero_stage == 3 else self.network

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's mean loss (averaged over micro-batches).

        Raises:
            RuntimeError: It was called twice without a step.
        """
        if self._stepping:
            raise RuntimeError(
                "a second backward call before the step: ZeRO would keep the last one's gradients"
                " only; add the losses up and call backward once"
            )
        self._stepping = True
        self._engine.backward(loss if self.zero_stage else self.loss_scale.scale_loss(loss))

    def step(self, learning_rate: float) -> None:
        """End a micro-batch; on the last one of an update, average over ranks and apply Adam.

        An update whose gradient is non-finite or explodes (LossScale.rejects) is skipped on all
        ranks and counted.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        boundary = self._engine.is_gradient_accumulation_boundary()
        before = self.loss_scale.skipped
        if boundary and self._reduces:
            if self.zero_stage:
                scatter_gradients(self._sharded, self._world)
            else:
                average_gradients(self._parameters, self._world)
        self._engine.step()
        self._stepping = False
        self.updates += int(boundary and self.loss_scale.skipped == before)

    def gradient_norm(self) -> float:
        """Return the global L2 norm of the last update's gradient (NaN before the first)."""
        norm = self._engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def held(self) -> list[ParameterShard]:
        """Return what this rank's optimizer works on: all under ZeRO-0, else its partition."""
        named = self.network.named_parameters()
        if self.zero_stage == 0:
            return [
                ParameterShard(name, 0, p.detach().view(-1), self._moments(p, 0, p.numel()))
                for name, p in named
            ]
        if self.zero_stage == 3:
            pieces = [self._held_piece(name, p) for name, p in named]
            return [piece for piece in pieces if piece.weight.numel()]
        return [
            ParameterShard(
                name,
                mapping.lp_fragment_address.start,
                mapping.hp_fragment,
                self._moments(
                    self._sharded.single_partition_of_fp32_groups[mapping.param_group_index],
                    mapping.hp_fragment_address.start,
                    mapping.hp_fragment_address.numel,
                ),
            )
            for name, p in named
            if (mapping := getattr(p, "_hp_mapping", None)) is not None
        ]

    def weights_in_use(self) -> list[Tensor]:
        """Return what losses compute with where `held` has the masters: flat, in the same order."""
        named: dict[str, Any] = dict(self.network.named_parameters())
        if self.zero_stage == 3:
            return [
                named[s.name].ds_tensor.detach().view(-1)[: len(s.weight)].to(s.weight.device)
                for s in self.held()
            ]
        return [
            named[s.name].detach().reshape(-1)[s.start :][: len(s.weight)].to(s.weight.device)
            for s in self.held()
        ]

    def adam_settings(self) -> dict[str, Any]:
        """Return Adam's `lr`, `betas` and `eps`, as of the last update."""
        return {name: self._optimizer.param_groups[0][name] for name in ("lr", "betas", "eps")}

    def owned(self) -> list[ParameterShard]:
        """Return this rank's part of a disjoint cover of all parameters (checkpoints, EMA)."""
        shards = self.held()
        return shards if self.zero_stage else share(shards, self._world.rank, self._world.size)

    def begin_restore(self, updates: int) -> list[ParameterShard]:
        """Return the held shards, moments allocated, to be overwritten with a saved state.

        Afterwards the caller sets `whole_parameters` to the same weights and calls `end_restore`.
        """
        self.updates = updates
        self._optimizer.state.clear()
        for master in self._masters() if updates else ():
            self._optimizer.state[master] = {
                "step": torch.tensor(float(updates), device=master.device),
                **{moment: torch.zeros_like(master) for moment in MOMENTS},
            }
        return self.held()

    def whole_parameters(self) -> dict[str, Tensor]:
        """Return the network's own weights by name; none under ZeRO-3, where only parts exist."""
        return {} if self.zero_stage == 3 else dict(self.network.named_parameters())

    def end_restore(self) -> None:
        """Under ZeRO-3, carry the restored masters into the weights' own partitions."""
        if self.zero_stage == 3:
            parameter: Any
            for parameter in self.network.parameters():
                group, offset, size = self._place(parameter)
                master = self._sharded.fp32_partitioned_groups_flat[group]
                parameter.ds_tensor.data.copy_(master.detach().narrow(0, offset, size))

    def close(self) -> None:
        """Remove DeepSpeed's hooks from the network."""
        self._engine.destroy()

    def _take_over_reduction(self) -> None:
        """Have DeepSpeed leave gradients where they are: `step` averages them (reduction.py).

        Its walks through all modules and tensors, for hooks that have nothing to do then, go too.
        """
        self._engine.enable_backward_allreduce = False
        if self.zero_stage == 0:
            self._engine.zero_grad = self._free_gradients
            return
        for hook in self._sharded._grad_acc_hooks:
            hook.remove()
        self._sharded.zero_grad = self._free_gradients
        # The weights are views of the flat ones, and stay so.
        self._sharded._update_model_bit16_weights = lambda group: None

    def _free_gradients(self, set_to_none: bool = True) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _masters(self) -> list[Tensor]:
        """Return the tensors that the optimizer updates."""
        if self.zero_stage == 0:
            return list(self.network.parameters())
        if self.zero_stage == 3:
            return list(self._sharded.fp32_partitioned_groups_flat)
        return list(self._sharded.single_partition_of_fp32_groups)

    def _place(self, parameter: nn.Parameter) -> tuple[int, int, int]:
        """Return where ZeRO-3 keeps this rank's part: group, offset and padded size."""
        group, offset, size = self._sharded.grad_position[self._sharded.get_param_id(parameter)]
        return group, offset, size

    def _held_piece(self, name: str, parameter: nn.Parameter) -> ParameterShard:
        """Return this rank's part of a parameter under ZeRO-3, without its padding."""
        group, offset, size = self._place(parameter)
        start = min(self._world.rank * size, self.shapes[name].numel())
        size = min(size, self.shapes[name].numel() - start)
        master = self._sharded.fp32_partitioned_groups_flat[group]
        weight = master.detach().narrow(0, offset, size)
        return ParameterShard(name, start, weight, self._moments(master, offset, size))

    def _moments(self, parameter: Tensor, start: int, numel: int) -> dict[str, Tensor]:
        state: dict[Any, Any] = self._optimizer.state.get(parameter, {})
        return {
            moment: state[moment].view(-1).narrow(0, start, numel)
            for moment in MOMENTS
            if moment in state
        }


@contextlib.contextmanager
def updating_only(name: str, parameters: Mapping[str, Iterable[nn.Parameter]]) -> Iterator[None]:
    """Freeze every network but one: no gradients are computed for, or leak into, the others.

    Args:
        name: The network that is updated.
        parameters: Those of all networks; lists, as walking through modules takes milliseconds.
    """
    frozen = [p for other, theirs in parameters.items() if other != name for p in theirs]
    for parameter in frozen:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad = True


def parameter_lists(networks: Mapping[str, nn.Module]) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of networks, as `updating_only` wants them."""
    return {name: list(network.parameters()) for name, network in networks.items()}


def _import_deepspeed(world: World) -> Any:
    """Import and initialise DeepSpeed: quietly, and without compiling anything."""
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # DeepSpeed needs it to start
    # DeepSpeed calls collectives that this torch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    check_version(deepspeed.__version__)
    deepspeed.ops.op_builder.builder.OpBuilder.jit_load = _reject_build
    # On the CPU DeepSpeed would build a C++ op for shared-memory all-reduce inside
    # init_distributed: it needs a compiler, and a build that is killed leaves a lock in the cache
    # that hangs every later run without a message.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        _ensure_group(world)
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed


def _reject_build(builder: Any, verbose: bool = True) -> None:
    """Stand in for DeepSpeed's compiling at run time: a killed build hangs all later runs.

    The lock that torch leaves in TORCH_EXTENSIONS_DIR then has no owner, and is waited for for
    ever. Nothing that relaywave uses is compiled.

    Raises:
        ConfigError: Always; names the operator.
    """
    del verbose
    raise ConfigError(
        f"DeepSpeed would compile its operator {builder.name} at run time, which relaywave does"
        f" not do; install DeepSpeed with it (DS_BUILD_{builder.name.upper()}=1), or leave the"
        " setting that needs it out of sharding.deepspeed"
    )


def _ensure_group(world: World) -> None:
    """Give a world of one process the process group that DeepSpeed insists on."""
    if not dist.is_initialized():
        backend = "gloo" if world.device.type == "cpu" else "cpu:gloo,cuda:nccl"
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
