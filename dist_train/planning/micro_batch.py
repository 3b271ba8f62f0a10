"""`micro_batch_size=auto`: from the plan's memory, tried once, and the same when a run resumes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from dist_train.config import RunConfig
from dist_train.engine.deepspeed_config import used_stage
from dist_train.engine.engine import parameter_lists, updating_only
from dist_train.planning.checks import AUTO, Batches, plan_batches
from dist_train.planning.flops import measure_step
from dist_train.planning.memory import largest_micro_batch, memory
from dist_train.runtime.world import World
from models.objective import Example, frozen_networks


class OutOfMemoryError(RuntimeError):
    """The device's memory is not enough for the run; the message names the settings to change."""


def plan_micro_batch(config: RunConfig, ranks: int, memory_bytes: float) -> RunConfig:
    """Return settings with the largest micro-batch that fits by estimate, or the least, for `auto`.

    Args:
        config: The run, its precision settled.
        ranks: Number of ranks.
        memory_bytes: Memory of a device.

    Raises:
        ConfigError: No size divides the global batch among the ranks.
    """
    if config.micro_batch_size != AUTO:
        return config
    stage = used_stage(config.sharding, ranks)
    most = largest_micro_batch(config, stage, ranks, memory_bytes)
    return replace(config, micro_batch_size=_split(config, ranks, most).micro)


def settle_micro_batch(config: RunConfig, recorded: int | None, world: World) -> RunConfig:
    """Return settings with a number for `micro_batch_size=auto`, the same on all ranks.

    A run that resumes keeps the number that it began with, or, on another number of ranks, the
    next lower one that divides its batch. Else it is that of the plan for the rank with least
    memory, halved until all ranks have tried it without running out.

    Args:
        config: The run, its precision settled.
        recorded: What the run began with; None for a new one.
        world: The process group. This is collective.

    Raises:
        ConfigError: No size divides the global batch among the ranks.
        OutOfMemoryError: There is no memory for the least size.
    """
    if config.micro_batch_size != AUTO:
        return config
    if recorded is not None:
        return replace(config, micro_batch_size=_split(config, world.size, recorded).micro)
    free = min(world.gather_objects(_free_memory(world)))
    config = plan_micro_batch(config, world.size, free)
    while not all(world.gather_objects(_fits(config, world))):
        size = config.micro_batch_size
        config = replace(config, micro_batch_size=_smaller(config, world.size))
        if config.micro_batch_size == size:
            raise out_of_memory(config, world)
    if world.rank == 0:
        print(f"micro_batch_size=auto takes {config.micro_batch_size}, by this device's memory")
    return config


def explained(error: Exception, config: RunConfig, world: World | None) -> Exception:
    """Return what to say of a run's error: of memory that ran out, the settings to change."""
    return out_of_memory(config, world) if world and is_out_of_memory(error) else error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of torch, CUDA or NCCL says that there is no memory left."""
    signs = ("out of memory", "alloc_failed", "defaultcpuallocator: can't allocate")
    return isinstance(error, (RuntimeError, MemoryError)) and any(
        sign in str(error).lower() for sign in signs
    )


def out_of_memory(config: RunConfig, world: World) -> OutOfMemoryError:
    """Return the error of a run whose device has no memory for its micro-batch."""
    size = _batches(config, world.size).micro
    smaller = _smaller(config, world.size)
    settings = [f"micro_batch_size={smaller}"] if smaller < size else []
    settings += [f"{name}=true" for name in _unset(config.objective, "recompute_blocks")]
    if config.sharding.zero_stage == 1 and world.size > 1:
        settings.append("sharding.zero_stage=2")
    if config.sharding.zero_stage and config.sharding.offload == "none":
        settings.append("sharding.offload=optimizer")
    whose = "the GPU's" if world.device.type == "cuda" else "this machine's"
    return OutOfMemoryError(
        f"{whose} memory is not enough at micro_batch_size={size} on {world.size} ranks; set"
        f" {', or '.join(settings) or 'smaller networks'} (a run that has begun resumes with it"
        " after --allow-changes); `relaywave train plan` estimates what they save"
    )


def _batches(config: RunConfig, ranks: int) -> Batches:
    multiple = config.objective.build().batch_multiple
    return plan_batches(config.global_batch_size, config.micro_batch_size, multiple, ranks)


def _split(config: RunConfig, ranks: int, most: int) -> Batches:
    """Return the largest micro-batch of at most this size, or the least that there is."""
    multiple = config.objective.build().batch_multiple
    return plan_batches(config.global_batch_size, AUTO, multiple, ranks, most)


def _smaller(config: RunConfig, ranks: int) -> int:
    """Return the largest micro-batch of at most half the size, or the least that there is."""
    return _split(config, ranks, _batches(config, ranks).micro // 2).micro


def _free_memory(world: World) -> float:
    """Return the bytes that this rank's device has for it."""
    if world.device.type == "cuda":
        return torch.cuda.mem_get_info(world.device)[0]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole / int(os.environ.get("LOCAL_WORLD_SIZE", world.size))


def _fits(config: RunConfig, world: World) -> bool:
    """Whether this rank can run all losses forward and backward, with room for the optimizer.

    No rank waits for another meanwhile. ZeRO-3 is taken at the plan's word: it trains networks
    that do not fit on one rank.
    """
    stage = used_stage(config.sharding, world.size)
    if stage == 3:
        return True
    size = _batches(config, world.size).micro
    footprint = measure_step(config.objective, size)
    planned = memory(config, footprint, stage, world.size)
    optimizer = planned.optimizer if config.sharding.offload == "none" else 0.0
    later = optimizer + planned.ema + max(planned.gradients - footprint.gradient_bytes, 0.0)
    try:
        state = torch.empty(int(later), dtype=torch.uint8, device=world.device)
        _run_losses(config, size, world.device)
        del state
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _run_losses(config: RunConfig, size: int, device: torch.device) -> None:
    """Run a step's losses on black images, with a lazy penalty and without, and update nothing."""
    objective = config.objective.build()
    edge, labelled = objective.resolution, config.objective.label_dim > 0
    images = torch.zeros(size, 3, edge, edge, dtype=torch.uint8, device=device)
    labels = torch.zeros(size, dtype=torch.int64, device=device) if labelled else None
    example = Example(objective.prepare(images), labels, tuple(range(size)), config.seed)
    networks = {name: net.to(device).train() for name, net in objective.build_networks().items()}
    frozen = {name: net.to(device) for name, net in frozen_networks(objective).items()}
    parameters = parameter_lists(networks)
    for name, loss_fn in objective.losses().items():
        with updating_only(name, parameters):
            for step in (0, 1):
                loss, _ = loss_fn(networks | frozen, example, step)
                torch.autograd.backward(loss)
                networks[name].zero_grad(set_to_none=True)


def _unset(config: Any, name: str, prefix: str = "objective.") -> Iterator[str]:
    """Yield the dotted names of a switch that is off, in all groups of settings."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _unset(value, name, f"{prefix}{field.name}.")
        elif field.name == name and not value:
            yield prefix + name
