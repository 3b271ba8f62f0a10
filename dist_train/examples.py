"""Micro-batches of images as the losses take them, from any place in the global sample order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from data_pipelines.pipeline import ImagePipeline
from models.objective import Example, Objective


@dataclass(frozen=True, kw_only=True)
class ExampleStream:
    """This rank's micro-batches in model space.

    Attributes:
        pipeline: Where images come from.
        objective: Takes them to model space.
        conditional: Whether the networks are conditioned on labels.
        memory_format: Layout of images in memory.
        seed: Of all random draws.
    """

    pipeline: ImagePipeline
    objective: Objective
    conditional: bool
    memory_format: torch.memory_format
    seed: int

    def start(self, images_seen: int) -> Iterator[Example]:
        """Yield micro-batches endlessly, from a position of the global sample order on."""
        for batch in self.pipeline.batches(images_seen):
            x = self.objective.prepare(batch.images).contiguous(memory_format=self.memory_format)
            labels = batch.labels if self.conditional else None
            yield Example(x, labels, batch.positions, self.seed)

    @property
    def replaced(self) -> int:
        """How many images of this rank were corrupt, and replaced."""
        return len(self.pipeline.corrupt)

    def close(self) -> None:
        """End the pipeline."""
        self.pipeline.close()
