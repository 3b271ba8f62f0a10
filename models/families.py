"""The objectives that configurations and snapshots may name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, TypeVar

from models.objective import ObjectiveConfig
from models.plugins import PluginError, Registry
from models.rdm.config import EdmConfig, RelayConfig
from models.wavediff.config import WaveDiffConfig

C = TypeVar("C", bound=type)

OBJECTIVES: Registry[type] = Registry(
    "objective", type, {cls.__name__: cls for cls in (EdmConfig, RelayConfig, WaveDiffConfig)}
)
AnyObjective = Annotated[ObjectiveConfig, OBJECTIVES]


def objective(config: C) -> C:
    """Register an `ObjectiveConfig` under its class's name, which runs and snapshots record.

    Raises:
        PluginError: It is no frozen dataclass, or lacks a method of `ObjectiveConfig`.
    """
    if not is_dataclass(config) or not config.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise PluginError(f"objective {config.__name__} is no frozen dataclass")
    for name in ("label_dim", "build", "build_sampler"):
        if not hasattr(config, name) and name not in config.__dataclass_fields__:
            raise PluginError(f"objective {config.__name__} has no {name}; see ObjectiveConfig")
    OBJECTIVES.register(config.__name__, config)
    return config


def without_sampling(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return JSON with an `objective` without its sampler's settings; None if it has none.

    Older versions accepted settings of samplers that are rejected now. They decide how images are
    drawn, not what the weights are: what was stored is read with the defaults then.
    """
    objective = document.get("objective")
    if not isinstance(objective, dict) or not isinstance(objective.get("sampling"), dict):
        return None
    others = {name: value for name, value in objective.items() if name != "sampling"}
    return {**document, "objective": others}
