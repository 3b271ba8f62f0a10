"""What a training step costs, found by running it on tensors without data.

Networks and losses run once under torch's fake tensor mode: shapes, dtypes and lifetimes are real,
nothing is computed and no memory is used, so that a 500M-parameter recipe is measured on a laptop.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dist_train.engine.engine import parameter_lists, updating_only
from dist_train.planning.hardware import find_gpu
from models.families import AnyObjective
from models.objective import Example, Objective, frozen_networks

UNSHARDED = 100_000
"""ZeRO-3 keeps tensors of fewer parameters whole on every rank (DeepSpeed's default)."""


class Operation(NamedTuple):
    """What one operation of a device costs.

    Attributes:
        dtype: Name of what it computes in.
        flops: Floating-point operations of a product, convolution or attention; else 0.
        bytes: Sizes of all tensors that it reads and writes.
        is_convolution: Whether it is a convolution, for which TF32 has a switch of its own.
    """

    dtype: str
    flops: int
    bytes: int
    is_convolution: bool = False


Operations = Mapping[Operation, float]
"""How often each kind of operation runs."""
FREE = ("empty", "new_empty", "_unsafe_view", "detach", "device")
"""Names of operations that launch nothing; `device` is a question that fake tensors are asked."""


@dataclass(frozen=True)
class Footprint:
    """Cost of one micro-batch.

    Attributes:
        flops: Floating-point operations of forward and backward passes of all losses, a lazy
            penalty counted by its share of the steps; a multiply-add is two.
        activation_bytes: Most memory in use at any time besides weights, gradients, optimizer and
            the images: activations saved for the backward pass and temporary tensors.
        gradient_bytes: Gradients of the network whose loss needs that memory.
        parameters: Number of parameters by network.
        small_parameters: How many of them are in tensors that ZeRO-3 does not shard.
        operations: By network and pass ("forward", "backward") of its loss, a lazy penalty's by its
            share of the steps.
    """

    flops: float
    activation_bytes: int
    gradient_bytes: int
    parameters: dict[str, int]
    small_parameters: int
    operations: Mapping[tuple[str, str], Operations] = field(default_factory=dict)

    def launches(self) -> float:
        """Return the number of operations of all passes."""
        return sum(sum(kinds.values()) for kinds in self.operations.values())


@functools.lru_cache(maxsize=64)
def measure_step(config: AnyObjective, micro_batch_size: int) -> Footprint:
    """Return the cost of one micro-batch through all losses of an objective.

    Where code looks at a value, it sees 0: the padding of the geometric augmentation is left out.
    """
    objective = config.build()
    interval = getattr(config, "r1_interval", 1) if objective.second_order else 1
    flops, heaviest, frozen = 0.0, CostMeter(), frozen_networks(objective)
    operations: dict[tuple[str, str], dict[Operation, float]] = {}
    with forgetting_fakes(), FakeTensorMode(allow_non_fake_inputs=True):
        networks = objective.build_networks()
        example = _example(objective, config.label_dim, micro_batch_size)
        for name, loss_fn in objective.losses().items():
            with updating_only(name, parameter_lists(networks)):
                for step, share in ((0, 1 / interval), (1, 1 - 1 / interval)):
                    if share:
                        meter = _cost(networks | frozen, loss_fn, example, step)
                        flops += share * meter.flops
                        for part, kinds in meter.by_pass.items():
                            total = operations.setdefault((name, part), {})
                            for kind, count in kinds.items():
                                total[kind] = total.get(kind, 0.0) + share * count
                        heaviest = max(heaviest, meter, key=lambda m: m.peak)
        tensors = {name: [p.numel() for p in net.parameters()] for name, net in networks.items()}
    return Footprint(
        flops=flops,
        activation_bytes=heaviest.peak - heaviest.gradient_bytes,
        gradient_bytes=heaviest.gradient_bytes,
        parameters={name: sum(sizes) for name, sizes in tensors.items()},
        small_parameters=sum(n for sizes in tensors.values() for n in sizes if n < UNSHARDED),
        operations=operations,
    )


@functools.lru_cache
def metric_names(config: AnyObjective) -> tuple[str, ...]:
    """Return the names of the metrics that an objective's losses give, `network/metric`."""
    objective = config.build()
    found, frozen = [], frozen_networks(objective)
    with forgetting_fakes(), FakeTensorMode(allow_non_fake_inputs=True):
        networks = objective.build_networks()
        example = _example(objective, config.label_dim, objective.batch_multiple)
        for name, loss_fn in objective.losses().items():
            meter = CostMeter()  # which answers for values
            with updating_only(name, parameter_lists(networks)), meter:
                _, metrics = loss_fn(networks | frozen, example, 0)
            found += [f"{name}/{key}" for key in metrics]
    return tuple(found)


@functools.lru_cache
def step_flops(config: AnyObjective) -> float:
    """Return the floating-point operations of training on one image."""
    size = config.build().batch_multiple
    return measure_step(config, size).flops / size


def peak_flops(tflops: float | None, device: torch.device) -> float | None:
    """Return the operations per second of a device: as given, or of a known GPU, or None."""
    if tflops is not None:
        return tflops * 1e12
    if device.type != "cuda":
        return None
    gpu = find_gpu(torch.cuda.get_device_name(device))
    return None if gpu is None else gpu.peak_flops


@contextlib.contextmanager
def forgetting_fakes() -> Iterator[None]:
    """Empty the models' caches afterwards: tables that were made here hold no numbers."""
    try:
        yield
    finally:
        modules = [m for name, m in sys.modules.items() if name.startswith("models.")]
        for value in [value for module in modules for value in vars(module).values()]:
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()


def _example(objective: Objective, label_dim: int, size: int) -> Example:
    edge = objective.resolution
    images = torch.empty(size, 3, edge, edge, dtype=torch.uint8)
    labels = torch.zeros(size, dtype=torch.int64) if label_dim else None
    return Example(objective.prepare(images), labels, tuple(range(size)), 0)


def _cost(
    networks: dict[str, nn.Module], loss_fn: Callable[..., Any], example: Example, step: int
) -> CostMeter:
    """Run one loss forward and backward and return the meter that watched."""
    meter = CostMeter()
    with meter:
        loss, _ = loss_fn(networks, example, step)
        meter.begin("backward")
        loss.backward()
        gradients = [p.grad for net in networks.values() for p in net.parameters()]
        meter.gradient_bytes = sum(g.untyped_storage().nbytes() for g in gradients if g is not None)
    for network in networks.values():
        network.zero_grad(set_to_none=True)
    return meter


class CostMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations while it is active, and the bytes of all tensors that they make.

    Attributes:
        flops: Floating-point operations of matrix products, convolutions and attention.
        by_pass: How often each kind of operation ran, by what had begun; views and allocations cost
            nothing.
        peak: Most bytes that were alive at once.
        gradient_bytes: Bytes of them that are the parameters' gradients at the end.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.peak = self.gradient_bytes = 0
        self.by_pass: dict[str, Counter[Operation]] = {}
        self.begin("forward")
        self._live = 0
        self._known: set[int] = set()

    def begin(self, part: str) -> None:
        """Count what follows under this name."""
        self.operations = self.by_pass.setdefault(part, Counter())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; count it and the storages that it made."""
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 0.0 if args[0].dtype.is_floating_point else 0
        result = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        flops = count(*args, **kwargs, out_val=result) if count else 0
        self.flops += flops
        name = func.overloadpacket.__name__
        if not (func.is_view or name.startswith(FREE)):
            self._note(name, flops, {id(t): t for t in tree_leaves((args, kwargs, result))})
        inputs = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _key(tensor) not in inputs | self._known:
                self._add(tensor)
        return result

    def _note(self, name: str, flops: int, touched: dict[int, Any]) -> None:
        tensors = [tensor for tensor in touched.values() if isinstance(tensor, Tensor)]
        dtypes = [str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        kind = Operation(dtypes[0] if dtypes else "", flops, size, "convolution" in name)
        self.operations[kind] += 1

    def _add(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key, size = _key(tensor), storage.nbytes()
        self._known.add(key)
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
