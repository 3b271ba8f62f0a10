"""A trace of a few steps, for chrome://tracing or Perfetto."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from dist_train.runtime.world import World
from models.safe_files.atomic import atomic_path

logger = logging.getLogger(__name__)

WARM_UP_STEPS = 2
"""First steps allocate and compile; they are not traced."""


class StepProfiler:
    """Traces some steps of this process into `profile/rank_00000.json`.

    Args:
        run_dir: The run directory.
        world: The process group.
        steps: How many steps; 0 switches the profiler off.
    """

    def __init__(self, run_dir: Path, world: World, steps: int) -> None:
        self._file = run_dir / "profile" / f"rank_{world.rank:05d}.json"
        self._first, self._last = WARM_UP_STEPS, WARM_UP_STEPS + steps
        self._done = 0
        self._profile: profile | None = None
        self._cuda = world.device.type == "cuda"

    def step(self) -> None:
        """Take note of the end of a step."""
        self._done += 1
        if self._done == self._first and self._last > self._first:
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._cuda
            self._profile = profile(activities=kinds, profile_memory=True, record_shapes=True)
            self._profile.start()
        elif self._done == self._last:
            self.close()

    def close(self) -> None:
        """Write the trace, if one is being made; a profiler left running crashes at the exit."""
        if self._profile is None:
            return
        if self._cuda:
            torch.cuda.synchronize()
        self._profile.stop()
        try:
            self._file.parent.mkdir(exist_ok=True)
            with atomic_path(self._file) as file:
                self._profile.export_chrome_trace(str(file))
        except OSError as error:
            logger.warning("%s could not be written: %s", self._file, error)
        self._profile = None
