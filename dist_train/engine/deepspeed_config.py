"""DeepSpeed's settings: ours, extended by the user's; which stage can train what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dist_train.config import ShardingConfig
from dist_train.engine.user_settings import check_settings
from models.config_io import ConfigError

VERSION = "0.19.8"
"""The version of DeepSpeed that the tests run, and whose undocumented attributes engines use."""
MAX_BUCKET = 50_000_000
"""Gradients that are reduced together. DeepSpeed's default allocates 2 GB per network at once."""


def check_version(installed: str) -> None:
    """Reject a DeepSpeed for which engines were not tested; a local build (`+...`) may pass.

    Raises:
        ConfigError: It is another version than VERSION.
    """
    if installed.partition("+")[0] != VERSION:
        raise ConfigError(
            f"DeepSpeed {installed} is installed, but relaywave works with {VERSION} only (0.19.7"
            f" applies NaN gradients); install it: pip install deepspeed=={VERSION}"
        )


def check_stage(sharding: ShardingConfig, networks: int, second_order: bool) -> None:
    """Reject a ZeRO stage that cannot train an objective.

    Raises:
        ConfigError: R1 or several networks under ZeRO-3, or offloading that the stage lacks.
    """
    zero_stage, offload = sharding.zero_stage, sharding.offload
    if zero_stage == 3 and second_order:
        raise ConfigError(
            "sharding.zero_stage=3 cannot train an objective with a gradient penalty (R1): its"
            " double backward finds the weights already released; set it to 1 or 2"
        )
    if zero_stage == 3 and networks > 1:
        raise ConfigError(
            f"sharding.zero_stage=3 trains one network, this objective has {networks}: a frozen"
            " network's weights are released in the middle of another's step; set it to 1 or 2"
        )
    if offload == "parameters" and zero_stage != 3:
        raise ConfigError(
            f"sharding.offload=parameters needs sharding.zero_stage=3, not {zero_stage};"
            " use sharding.offload=optimizer"
        )
    if offload == "optimizer" and zero_stage == 0:
        raise ConfigError(
            "sharding.offload=optimizer needs a sharded optimizer; set sharding.zero_stage to 1 or"
            " more"
        )


def used_stage(sharding: ShardingConfig, ranks: int) -> int:
    """Return the ZeRO stage that an engine works in: one rank has nothing to shard."""
    return sharding.zero_stage if ranks > 1 or sharding.offload != "none" else 0


def engine_settings(
    sharding: ShardingConfig,
    *,
    micro_batch_size: int,
    accumulation_steps: int,
    clip: float,
    parameters: int = MAX_BUCKET,
) -> dict[str, Any]:
    """Return DeepSpeed's settings: ours and those of `sharding.deepspeed` (DeepSpeed's own format).

    Raises:
        ConfigError: The latter are not among those that can be given (user_settings.py).
    """
    zero_stage, offload = sharding.zero_stage, sharding.offload
    zero: dict[str, Any] = {"stage": zero_stage}
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its Adam is compiled on first use
        "gradient_clipping": clip,
        "steps_per_print": 10**12,
    }
    check_settings(sharding, ours)
    # Of several buckets ZeRO-2 with offloading keeps the last micro-batch only (4.7).
    in_one = zero_stage == 2 and offload != "none" and accumulation_steps > 1
    bucket = parameters if in_one else min(parameters, MAX_BUCKET)
    defaults: dict[str, Any] = {"reduce_bucket_size": bucket}
    if zero_stage < 3:  # by default every rank would get, and send, the sum of whole gradients
        defaults["use_multi_rank_bucket_allreduce"] = False
    else:  # by default whole networks of up to 1e9 parameters stay gathered
        names = ("max_live_parameters", "max_reuse_distance", "prefetch_bucket_size")
        defaults |= {f"stage3_{name}": MAX_BUCKET for name in names}
    return _merged({"zero_optimization": defaults}, _merged(ours, sharding.deepspeed))


def _merged(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return both; `more` wins where they differ."""
    both = {**settings, **more}
    for name in settings.keys() & more.keys():
        if isinstance(settings[name], Mapping):
            both[name] = _merged(settings[name], more[name])
    return both
