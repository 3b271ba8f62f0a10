"""The states between noise and image: what a sampler's networks were given and made of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.rdm.edm_sampler import EdmSampler
from models.rdm.relay_sampler import RelaySampler
from models.sampler import Sampler
from models.wavediff.sampler import WaveDiffSampler


@dataclass(frozen=True)
class State:
    """One evaluation of a network.

    Attributes:
        stage: Name of the stage, as in `Sampler.nfe`.
        level: Level sigma of the noise (RDM), or the number t of the step (WaveDiff).
        noisy: What the network was given, about [-1, 1] plus noise, float [B, 3, H, W].
        predicted: The image that it predicted, about [-1, 1], float [B, 3, H, W].
    """

    stage: str
    level: float
    noisy: Tensor
    predicted: Tensor


@contextmanager
def recorded_states(sampler: Sampler) -> Iterator[list[State]]:
    """Record the states of all stages while images are drawn; the images stay the same.

    Where guidance acts, the conditional half is recorded; with Heun's correction each step has two
    states.

    Raises:
        TypeError: It is no sampler of RDM, WaveDiff or DDGAN.
    """
    states: list[State] = []
    with ExitStack() as replaced:
        for stage in stages_of(sampler):
            name, watched = _watched(stage, states)
            replaced.enter_context(_replaced(stage, name, watched))
        yield states


@contextmanager
def _replaced(stage: Sampler, name: str, value: Any) -> Iterator[None]:
    before = getattr(stage, name)
    setattr(stage, name, value)
    try:
        yield
    finally:
        setattr(stage, name, before)


def stages_of(sampler: Sampler) -> list[Sampler]:
    """Return a sampler's stages, the last one included, in the order in which they draw."""
    if isinstance(sampler, RelaySampler):
        return [*stages_of(sampler.previous), sampler]
    return [sampler]


def _watched(stage: Sampler, states: list[State]) -> tuple[str, Any]:
    """Return the name of the attribute that evaluates a stage's network, and one that records."""
    name = list(stage.nfe)[-1]
    if isinstance(stage, (EdmSampler, RelaySampler)):
        denoise, batch = stage.denoise, 0

        def denoise_and_record(x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
            nonlocal batch
            batch = batch or len(x)
            denoised = denoise(x, sigma, labels)
            states.append(State(name, sigma, x[:batch], denoised[:batch]))
            return denoised

        return "denoise", denoise_and_record
    if isinstance(stage, WaveDiffSampler):
        network, space = stage.network, stage.space

        def predict_and_record(y: Tensor, t: Tensor, z: Tensor) -> Tensor:
            predicted: Tensor = network(y, t, z)
            level = float(t[0])
            states.append(State(name, level, space.unpack(y), space.unpack(predicted)))
            return predicted

        return "network", predict_and_record
    raise TypeError(f"states of a {type(stage).__name__} are not known")
