"""A model in memory that draws with other settings of its sampler at each call."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.analysis.states import State, recorded_states
from models.config_io import ConfigError, override, to_json
from models.families import AnyObjective
from models.sampler import balanced_labels, quantise, sample
from models.snapshot import Snapshot, build_sampler, load_networks, sampled_classes

BY_SEED = -1
"""Instead of a class: that of the seed, as everywhere else."""
MOST_STATES = 12
"""States that are shown, evenly spread, the first and the last included."""


@dataclass(frozen=True)
class Control:
    """A setting of a stage's sampler that people may move.

    Attributes:
        stage: Number of the stage, from 0.
        key: Name of the setting, as in overrides.
        label: What people read.
        least: Smallest value.
        most: Largest value.
        step: Distance of values.
        value: The snapshot's own.
    """

    stage: int
    key: str
    label: str
    least: float
    most: float
    step: float
    value: float


CONTROLS = (
    ("sampling.steps", "steps", 1, 256, 1),
    ("sampling.guidance.scale", "guidance", 1.0, 8.0, 0.05),
    ("sampling.eta", "eta", 0.0, 1.0, 0.05),
    ("sampling.sde_scale", "SDE scale", 0.0, 1.0, 0.05),
)
"""Key, label, smallest and largest value, and step of what samplers may have."""


@dataclass(frozen=True)
class Drawing:
    """What one call has drawn.

    Attributes:
        images: Samples, uint8 [B, 3, H, W] on the CPU.
        labels: Their classes, or None for an unconditional model.
        states: States of the first sample by name, noisy above predicted, uint8 [3, 2 H, W].
        seconds: Time that it took.
        nfe: Network evaluations of each image by stage.
    """

    images: Tensor
    labels: list[int] | None
    states: list[tuple[Tensor, str]]
    seconds: float
    nfe: Mapping[str, int]


class DemoModel:
    """A model, its networks loaded once.

    Args:
        snapshots: The model, or a relay's stages in order.
        device: Where it draws.

    Attributes:
        title: Name of it for people.
        controls: Settings of all stages that may be moved.
        classes: Names of the classes that it draws, by their numbers; empty if there are none.

    Raises:
        ValueError: A snapshot is damaged, or the stages do not fit together.
    """

    def __init__(self, snapshots: Sequence[Snapshot], device: torch.device | str) -> None:
        self._objectives = [snapshot.objective for snapshot in snapshots]
        self._networks = load_networks(snapshots, device)
        build_sampler(self._objectives, self._networks)
        self._classes = sampled_classes(snapshots)
        names = next((names for snapshot in reversed(snapshots)
                      if (names := snapshot.provenance.get("class_names"))), ())  # fmt: skip
        self.classes = {label: str(names[label]) if label < len(names) else str(label)
                        for label in self._classes}  # fmt: skip
        self.title = " → ".join(map(_title, snapshots))
        self.controls = controls_of(self._objectives)

    def draw(
        self,
        seeds: Sequence[int],
        label: int,
        values: Sequence[float],
        *,
        states: bool = False,
    ) -> Drawing:
        """Draw samples; those of equal seeds and settings are those of `relaywave eval sample`.

        Args:
            seeds: One per image.
            label: The class of all, or BY_SEED.
            values: One for each of `controls`.
            states: Whether states of the first image are kept.

        Raises:
            ConfigError: The sampler rejects the settings.
            ValueError: The samples are not finite.
        """
        sampler = build_sampler(self._with(values), self._networks)
        classes = self._classes if label == BY_SEED else (label,)
        labels = balanced_labels(seeds, classes if self._classes else ())
        finite: list[Tensor] = []

        def to_uint8(images: Tensor) -> Tensor:
            finite.append(images.isfinite().all())
            return quantise(images)

        started = time.monotonic()
        if states:
            with recorded_states(sampler) as kept:
                images = sample(sampler, seeds, labels, to_uint8).cpu()
        else:
            kept, images = [], sample(sampler, seeds, labels, to_uint8).cpu()
        seconds = time.monotonic() - started
        if not finite[0]:
            raise ValueError("the samples are not finite: move the settings back")
        return Drawing(
            images=images,
            labels=None if labels is None else labels.tolist(),
            states=_pictures(kept, images.shape[-1]),
            seconds=seconds,
            nfe=sampler.nfe,
        )

    def _with(self, values: Sequence[float]) -> list[AnyObjective]:
        """Return the objectives with the values of the controls that were moved."""
        objectives = list(self._objectives)
        for control, value in zip(self.controls, values, strict=True):
            if value is None:
                raise ConfigError(f"{control.label} is empty; give a number")
            if value != control.value:  # what is not moved stays exactly as it is in the snapshot
                text = f"{control.key}={int(value) if control.step == 1 else float(value)}"
                objectives[control.stage] = override(objectives[control.stage], [text])
        return objectives


def controls_of(objectives: Sequence[AnyObjective]) -> list[Control]:
    """Return the settings of all stages that people may move."""
    found = []
    for number, objective in enumerate(objectives):
        stage = f"{objective.build().resolution}px " if len(objectives) > 1 else ""
        for key, label, least, most, step in CONTROLS:
            value = _value(to_json(objective), key)
            if value is None or (label == "guidance" and not objective.label_dim):
                continue
            found.append(
                Control(number, key, f"{stage}{label}", min(least, value), max(most, value), step,
                        value)
            )  # fmt: skip
    return found


def _value(document: Any, key: str) -> float | None:
    for name in key.split("."):
        document = document.get(name) if isinstance(document, dict) else None
    return document if isinstance(document, (int, float)) else None


def _title(snapshot: Snapshot) -> str:
    path = snapshot.path.resolve()
    if path.parent.name == "snapshots":
        return f"{path.parent.parent.name}/{path.name.lstrip('0') or '0'}"
    return path.name


def _pictures(states: Sequence[State], edge: int) -> list[tuple[Tensor, str]]:
    """Return some states of the first image as pictures of a common edge, each with its name."""
    last = len(states) - 1
    count = min(len(states), MOST_STATES)
    chosen = sorted({round(place * last / max(count - 1, 1)) for place in range(count)})
    return [(_picture(states[n], edge), _name(states[n])) for n in chosen]


def _picture(state: State, edge: int) -> Tensor:
    both = torch.cat([state.noisy[:1], state.predicted[:1]], dim=-2).float()
    factor = edge // both.shape[-1]
    both = both.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return quantise(both)[0].cpu()


def _name(state: State) -> str:
    if state.stage == "wavediff":
        return f"t = {state.level:.0f}"
    return f"{state.stage}, σ = {state.level:.3g}"
