"""Which of DeepSpeed's settings a user may give, and why not the others.

DeepSpeed accepts much that has no effect where relaywave runs it, trains something else, or hides
the weights from checkpoints, and says nothing. So this is an allow-list: `ALLOWED` has what was
tested on two ranks to give the same weights and complete checkpoints, the other tables have a
reason for everything else that the installed version knows; whatever is in none of them is
misspelt. Names are dotted: `zero_optimization.overlap_comm`.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dist_train.config import ShardingConfig
from models.config_io import ConfigError, did_you_mean

ZERO = "zero_optimization"
_STAGE3 = f"{ZERO}.stage3_"
LARGEST_BUCKET = 500_000_000
"""Gradients of a bucket that is allocated at once, 2 GB: DeepSpeed's default."""


@dataclass(frozen=True)
class Place:
    """Where a setting has an effect: in words, and as a test."""

    words: str
    holds: Callable[[ShardingConfig], bool]


def deepspeed_reduces(sharding: ShardingConfig) -> bool:
    """Whether DeepSpeed averages gradients, rather than gradient_reduction.py."""
    return sharding.zero_stage > 1 or (sharding.zero_stage == 1 and sharding.offload != "none")


REDUCING = Place("zero_stage=2 or 3, or zero_stage=1 with offload=optimizer", deepspeed_reduces)
IN_BUCKETS = Place(  # with ZeRO-2 and offloading, accumulation needs all gradients in one
    "zero_stage=3, zero_stage=2 with offload=none, or zero_stage=1 with offload=optimizer",
    lambda sharding: (
        deepspeed_reduces(sharding) and (sharding.zero_stage != 2 or sharding.offload == "none")
    ),
)
REDUCING_12 = Place(
    "zero_stage=2, or zero_stage=1 with offload=optimizer",
    lambda sharding: sharding.zero_stage < 3 and deepspeed_reduces(sharding),
)
UNOFFLOADED_2 = Place(
    "zero_stage=2 and offload=none",
    lambda sharding: sharding.zero_stage == 2 and sharding.offload == "none",
)
STAGE_1_2 = Place("zero_stage=1 or 2", lambda sharding: sharding.zero_stage in (1, 2))
STAGE_3 = Place("zero_stage=3", lambda sharding: sharding.zero_stage == 3)
OFFLOADING = Place("offload=optimizer or parameters", lambda sharding: sharding.offload != "none")
OFFLOADING_ALL = Place("offload=parameters", lambda sharding: sharding.offload == "parameters")


@dataclass(frozen=True)
class Switch:
    """A setting that is true or false, and where it has an effect."""

    place: Place

    def expected(self, value: object) -> str | None:
        """Return what was expected instead of `value`; None if it fits."""
        return None if isinstance(value, bool) else "true or false"


@dataclass(frozen=True)
class Count:
    """A whole number from `low` to `high`, and a multiple of `step`; JSON's 5e8 is one."""

    place: Place
    low: int = 0
    high: int = sys.maxsize
    step: int = 1

    def expected(self, value: object) -> str | None:
        """Return what was expected instead of `value`; None if it fits."""
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else -1
        if self.low <= number <= self.high and number % self.step == 0:
            return None
        kind = "a whole number" if self.step == 1 else f"a multiple of {self.step}"
        return f"{kind} from {self.low} to {self.high}"


ALLOWED: Mapping[str, Switch | Count] = {
    f"{ZERO}.allgather_bucket_size": Count(STAGE_1_2, low=2, step=2),
    f"{ZERO}.reduce_bucket_size": Count(IN_BUCKETS, low=1, high=LARGEST_BUCKET),
    f"{ZERO}.use_multi_rank_bucket_allreduce": Switch(REDUCING_12),
    f"{ZERO}.reduce_scatter": Switch(REDUCING),
    f"{ZERO}.overlap_comm": Switch(REDUCING),
    f"{ZERO}.contiguous_gradients": Switch(UNOFFLOADED_2),
    f"{ZERO}.sub_group_size": Count(STAGE_3, low=1),
    f"{_STAGE3}max_live_parameters": Count(STAGE_3),
    f"{_STAGE3}max_reuse_distance": Count(STAGE_3),
    f"{_STAGE3}prefetch_bucket_size": Count(STAGE_3),
    f"{_STAGE3}param_persistence_threshold": Count(STAGE_3),
    f"{_STAGE3}model_persistence_threshold": Count(STAGE_3),
    f"{_STAGE3}module_granularity_threshold": Count(STAGE_3),
    f"{_STAGE3}use_all_reduce_for_fetch_params": Switch(STAGE_3),
    f"{_STAGE3}allgather_sequential": Switch(STAGE_3),
    f"{ZERO}.offload_optimizer.pin_memory": Switch(OFFLOADING),
    f"{ZERO}.offload_param.pin_memory": Switch(OFFLOADING_ALL),
}
"""What may be given: its values, and where it has an effect."""

_PRECISION = "precision belongs to the networks: change compute.precision"
_LOGGERS = "change logging.wandb_project or logging.tensorboard"
_OFFLOAD = "change sharding.offload"
OWNED: Mapping[str, str] = {
    "optimizer": "optimizers are the recipe's: change optim.NETWORK",
    "scheduler": "learning rates are the recipe's: change optim.NETWORK.schedule",
    "fp16": _PRECISION,
    "bf16": _PRECISION,
    "bfloat16": _PRECISION,
    "amp": _PRECISION,
    "torch_autocast": _PRECISION,
    "data_types": "weights and gradients are float32",
    "train_batch_size": "change global_batch_size",
    "managed_gradient_accumulation": "change micro_batch_size",
    "checkpoint": "checkpoints are relaywave's own",
    "datastates_ckpt": "checkpoints are relaywave's own",
    "tensorboard": _LOGGERS,
    "wandb": _LOGGERS,
    "comet": _LOGGERS,
    "csv_monitor": "metrics are in metrics.jsonl",
    "flops_profiler": "use --profile-steps",
    "wall_clock_breakdown": "use --profile-steps; metrics.jsonl has the seconds of each phase",
    "activation_checkpointing": "change recompute_blocks of the objective's network",
    "compile": "change compute.compile",
    "data_efficiency": "the order of samples is relaywave's own",
    f"{ZERO}.offload_optimizer.device": _OFFLOAD,
    f"{ZERO}.offload_param.device": _OFFLOAD,
    f"{ZERO}.cpu_offload": _OFFLOAD,
    f"{ZERO}.cpu_offload_param": _OFFLOAD,
    f"{ZERO}.cpu_offload_use_pin_memory": f"use {ZERO}.offload_optimizer.pin_memory",
}
"""What is set elsewhere, and where."""

_ROUNDING = "gradients are averaged in float32, and the order of sums would be another"
_HIDES = "checkpoints would not hold the weights that are trained"
_NVME = "nothing is kept on NVMe: its masters are outside of what checkpoints can save"
_CPU_ADAM = "it needs DeepSpeed's own CPU Adam, which is compiled at run time"
_QUANTIZED = "it rounds weights or gradients"
_COMPUTES = "relaywave's networks are not built for it"
UNSAFE: Mapping[str, str] = {
    "communication_data_type": _ROUNDING,
    "seq_parallel_communication_data_type": _ROUNDING,
    "prescale_gradients": _ROUNDING,
    "gradient_predivide_factor": _ROUNDING,
    "gradient_allreduce_op": "gradients are means over the global batch",
    "disable_python_gc": "it stops the garbage collector of the whole process",
    "aio": _NVME,
    "autotuning": "it runs other settings than those of the run",
    "hybrid_engine": _COMPUTES,
    "pipeline": _COMPUTES,
    "tensor_parallel": _COMPUTES,
    "sequence_parallel_size": _COMPUTES,
    "expert_parallel": _COMPUTES,
    "weight_quantization": _QUANTIZED,
    f"{ZERO}.round_robin_gradients": "it moves the parameters: " + _HIDES,
    f"{ZERO}.parameter_alignment": "it pads the partitions, which was not tested",
    f"{ZERO}.zero_hpz_partition_size": "it keeps a second partition: " + _HIDES,
    f"{ZERO}.zero_quantized_weights": _QUANTIZED,
    f"{ZERO}.zero_quantized_nontrainable_weights": _QUANTIZED,
    f"{ZERO}.zero_quantized_gradients": _QUANTIZED,
    f"{ZERO}.zenflow": "it applies gradients late, so that training is another",
    f"{ZERO}.compute_grad_norm": "non-finite gradients would be applied",
    f"{ZERO}.ignore_unused_parameters": "a parameter without a gradient would end the run",
    f"{ZERO}.leaf_module": _COMPUTES,
    f"{ZERO}.memory_efficient_linear": "it replaces functions of torch in the whole process",
    f"{ZERO}.offload_optimizer.nvme_path": _NVME,
    f"{ZERO}.offload_optimizer.ratio": _CPU_ADAM,
    f"{ZERO}.offload_optimizer.super_offload": _CPU_ADAM,
    f"{ZERO}.offload_optimizer.cpuadam_cores_perc": _CPU_ADAM,
    f"{ZERO}.offload_param.nvme_path": _NVME,
}
"""What would train something else, or would not be saved."""

_SILENT = "DeepSpeed's own messages are switched off"
_NEVER = "relaywave never uses what it changes"
_REMOVED = "DeepSpeed has removed it"
_NVME_ONLY = "it is about NVMe, which relaywave does not use"
_SPELT = "give its name with the prefix: stage3_"
INEFFECTIVE: Mapping[str, str] = {
    **dict.fromkeys(("comms_logger", "dump_state", "log_level", "memory_breakdown"), _SILENT),
    **dict.fromkeys(
        ("dataloader_drop_last", "disable_allgather", "timers",
         "use_data_before_expert_parallelism", "vocabulary_size"), _NEVER
    ),
    **dict.fromkeys(
        ("compression_training", "curriculum_learning", "eigenvalue", "elasticity",
         "graph_harvesting", "nebula", "progressive_layer_drop", "quantize_training",
         "sparse_attention", "sparse_gradients", f"{ZERO}.mics_shard_size",
         f"{ZERO}.mics_hierarchical_params_gather", f"{ZERO}.zeropp_loco_param",
         f"{ZERO}.legacy_stage1"), _REMOVED
    ),
    **dict.fromkeys(
        (f"{ZERO}.{name}" for name in (
            "allgather_partitions", "elastic_checkpoint", "load_from_fp32_weights",
            "pipeline_loading_checkpoint", "override_module_apply",
            "save_muon_momentum_buffer_in_memory", "stage3_gather_16bit_weights_on_model_save",
            "stage3_gather_fp16_weights_on_model_save", "gather_16bit_weights_on_model_save")),
        _NEVER,
    ),
    f"{ZERO}.log_trace_cache_warnings": _SILENT,
    f"{ZERO}.enable_sanity_checks": "relaywave checks by itself that what is saved is trained",
    **dict.fromkeys(
        (f"{ZERO}.offload_optimizer.{name}" for name in (
            "buffer_count", "pipeline_read", "pipeline_write", "fast_init")), _NVME_ONLY
    ),
    **dict.fromkeys(
        (f"{ZERO}.offload_param.{name}" for name in (
            "buffer_count", "buffer_size", "max_in_cpu")), _NVME_ONLY
    ),
    **{
        f"{ZERO}.{key.removeprefix(_STAGE3)}": _SPELT + key.removeprefix(_STAGE3)
        for key in ALLOWED if key.startswith(_STAGE3)
    },
}  # fmt: skip
"""What would change nothing."""


BLOCKS = (ZERO, f"{ZERO}.offload_optimizer", f"{ZERO}.offload_param")
"""Settings that hold others, some of which are allowed."""


def check_settings(sharding: ShardingConfig, ours: Mapping[str, Any]) -> None:
    """Reject settings of `sharding.deepspeed` that are not allowed, or have no effect here.

    Args:
        sharding: The settings to check, with the stage and offloading that they are for.
        ours: What relaywave sets, in DeepSpeed's format: it may be repeated, but not changed.

    Raises:
        ConfigError: Names the setting, why it cannot be given, and what to do.
    """
    for key, value, own in _flat(sharding.deepspeed, ours):
        if problem := _problem(key, value, own, sharding):
            raise ConfigError(f"sharding.deepspeed.{problem}")


def _flat(
    settings: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted name, value, and our own value or None, of all settings within BLOCKS."""
    for name, value in settings.items():
        key, own = f"{prefix}{name}", ours.get(name)
        if key in BLOCKS and isinstance(value, Mapping):
            yield from _flat(value, own or {}, f"{key}.")
        else:
            yield key, value, own


def _problem(key: str, value: object, own: object, sharding: ShardingConfig) -> str | None:
    """Return what is wrong with a setting, beginning with its name, or None."""
    shown = f"{key}={reprlib.repr(value)}"
    if key in BLOCKS:
        return f"{shown} must be an object"
    if own is not None:
        if value == own and isinstance(value, bool) == isinstance(own, bool):
            return None
        return f"{shown} contradicts the recipe, which sets {own!r}; leave it out"
    if key in OWNED:
        return f"{key} contradicts the recipe: {OWNED[key]}"
    if key in UNSAFE:
        return f"{key} cannot be used: {UNSAFE[key]}; leave it out"
    if key in INEFFECTIVE:
        return f"{key} has no effect: {INEFFECTIVE[key]}; leave it out"
    if key not in ALLOWED:
        return f"{reprlib.repr(key)} is not a setting of DeepSpeed{did_you_mean(key, [*ALLOWED])}"
    if (expected := ALLOWED[key].expected(value)) is not None:
        return f"{shown} must be {expected}"
    place = ALLOWED[key].place
    if not place.holds(sharding):
        return (
            f"{key} has no effect with sharding.zero_stage={sharding.zero_stage} and"
            f" sharding.offload={sharding.offload}; it needs {place.words}, or leave it out"
        )
    return None
