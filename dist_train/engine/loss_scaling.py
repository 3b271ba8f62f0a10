"""What happens between a gradient and an update: loss scaling, skipped updates, clipping.

Under ZeRO-1/2/3 DeepSpeed looks at the partitioned gradient, and asks our `LossScale`; under ZeRO-0
it looks at nothing, and `CheckedAdam` does the same for it. Either way an update whose gradient is
non-finite on any rank, or explodes where the policy skips such ones, is skipped on all of them, and
counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

INITIAL_SCALE = 2.0**16
GROWTH_INTERVAL = 1000
"""Updates in a row with finite gradients after which a dynamic scale is doubled."""


class LossScale:
    """Factor of the loss in the backward pass, and the record of skipped updates.

    Networks that compute in float16 need a large factor, or their small gradients become zero: it
    is halved when a gradient overflows and doubled after many that did not. Otherwise it is 1.
    DeepSpeed calls `scale_loss`, `update_scale`, `cur_scale` and `loss_scale` by these names.

    Args:
        dynamic: Whether to scale at all.
        explosion: A gradient whose norm is above this multiple of the last applied one's (or of 1,
            if that was less) is skipped like a non-finite one; None: only those are.
    """

    def __init__(self, dynamic: bool, explosion: float | None = None) -> None:
        self.dynamic = dynamic
        self._explosion = explosion
        self._norm = 0.0
        self.cur_scale = INITIAL_SCALE if dynamic else 1.0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self._finite_in_a_row = 0

    @property
    def loss_scale(self) -> float:
        """The present factor."""
        return self.cur_scale

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Return the scaled loss."""
        return loss * self.cur_scale if self.dynamic else loss

    def rejects(self, norm: float) -> bool:
        """Whether an unscaled gradient of this norm must not be applied; remembers one that may."""
        if not math.isfinite(norm):
            return True
        limit = math.inf
        if self._explosion is not None and self._norm:
            limit = self._explosion * max(self._norm, 1.0)
        if norm > limit:
            return True
        self._norm = norm
        return False

    def update_scale(self, overflow: bool) -> None:
        """Take note of an update that was applied, or skipped because of its gradient."""
        self.skipped += int(overflow)
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if overflow else 0
        self._finite_in_a_row = 0 if overflow else self._finite_in_a_row + 1
        if not self.dynamic:
            return
        if overflow:
            self.cur_scale /= 2
        elif self._finite_in_a_row % GROWTH_INTERVAL == 0:
            self.cur_scale *= 2

    def state(self) -> dict[str, float]:
        """Return what a checkpoint must keep."""
        return {
            "scale": self.cur_scale,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "finite_in_a_row": self._finite_in_a_row,
            "norm": self._norm,
        }

    def load_state(self, state: dict[str, float]) -> None:
        """Continue from a checkpoint; a run that newly scales starts with the initial factor."""
        self.cur_scale = state["scale"] if self.dynamic and state["scale"] != 1 else self.cur_scale
        self.skipped = int(state["skipped"])
        self.skipped_in_a_row = int(state["skipped_in_a_row"])
        self._finite_in_a_row = int(state["finite_in_a_row"])
        self._norm = state.get("norm", 0.0)


class CheckedAdam(torch.optim.Adam):
    """Adam on replicated gradients: unscales and clips them, skips an update if one is not finite.

    Every rank sees the same averaged gradients, so that all decide alike without communication.
    DeepSpeed reads `overflow` and `_global_grad_norm` by these names.

    Args:
        parameters: The network's parameters.
        scale: The loss scale to undo.
        max_norm: Gradients of a larger L2 norm are scaled down to it; None never clips.
        settings: Of torch's Adam.
    """

    def __init__(
        self, parameters: Any, scale: LossScale, max_norm: float | None, **settings: Any
    ) -> None:
        super().__init__(parameters, **settings)
        self.overflow = False
        self._scale = scale
        self._max_norm = max_norm
        self._global_grad_norm = math.nan

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update the parameters, or leave everything as it is."""
        del closure
        parameters = [p for group in self.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients)) / self._scale.cur_scale
        self.overflow = self._scale.rejects(norm)
        self._global_grad_norm = math.inf if self.overflow else norm
        if not self.overflow:
            excess = max((norm + 1e-6) / self._max_norm, 1.0) if self._max_norm else 1.0
            if (factor := excess * self._scale.cur_scale) != 1.0:
                torch._foreach_mul_(gradients, 1.0 / factor)
            super().step()
        self._scale.update_scale(self.overflow)


def partitioned_norm(scale: LossScale, gradients: Iterable[Tensor], *_: Any) -> Tensor:
    """Return the L2 norm of the gradient whose partitions the ranks hold, -1 to skip the update.

    It stands in for ZeRO-1/2's `get_grad_norm_direct`, which walks through all tensors in Python
    and takes one or two per cent of a small network's step. Collective.

    Args:
        scale: What gradients are multiplied by; it decides whether to skip.
        gradients: This rank's partition of the averaged gradient.
    """
    total = torch.stack(torch._foreach_norm(list(gradients))).square().sum()
    dist.all_reduce(total)
    norm = total.sqrt()
    skip = scale.rejects(float(norm) / scale.cur_scale)
    return torch.full_like(norm, -1.0) if skip else norm
