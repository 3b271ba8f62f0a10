"""Checking the metrics of an interval: is training going wrong, and what to change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from dist_train.config import DivergencePolicy
from dist_train.engine.loss_scaling import LossScale
from models.command_line import EXIT_DIVERGED

SMALLEST_SCALE = 1.0
"""A dynamic loss scale below this cannot help any more: gradients are infinite by themselves."""


class DivergedError(RuntimeError):
    """A loss is non-finite, or training has collapsed; the last checkpoint before it is kept."""

    exit_code = EXIT_DIVERGED


class DivergenceCheck:
    """Looks at every interval's means, which are the same on all ranks.

    Args:
        policy: What counts as a sign of divergence.
        diagnose: The objective's own check.
        scales: Loss scales by network, which count skipped updates.
    """

    def __init__(
        self,
        policy: DivergencePolicy,
        diagnose: Callable[[Mapping[str, float]], str | None],
        scales: Mapping[str, LossScale],
    ) -> None:
        self._policy = policy
        self._diagnose = diagnose
        self._scales = scales
        self._last: dict[str, float] = {}
        self._skipped = {name: scale.skipped for name, scale in scales.items()}

    def find_problem(
        self,
        metrics: Mapping[str, float],
        norms: Mapping[str, float] | None = None,
        non_finite: Sequence[str] = (),
    ) -> str | None:
        """Return what is wrong and what to change, or None; remembers the interval if healthy.

        Args:
            metrics: Means of the interval.
            norms: Norm of the last update's gradient by network.
            non_finite: What of the state that would be saved has values that are not finite.
        """
        if non_finite:  # whatever the policy: it must not be saved
            names = ", ".join(f"optim.{name}.lr" for name in self._scales)
            return f"{' and '.join(non_finite)} have values that are not finite; lower {names}"
        for name, norm in (norms or {}).items():
            if norm == 0:
                return (
                    f"the gradient of the {name} is exactly 0, so that nothing is trained; check"
                    " the data and the objective's settings"
                )
        skipped = sum(scale.skipped for scale in self._scales.values())
        skipping = self._policy.action == "skip" and skipped > sum(self._skipped.values())
        problem = self._updates()
        if skipping:  # the losses are those of updates that were never applied
            return problem
        # The objective's check first: it knows which network's setting made a loss rise.
        problem = problem or self._diagnose(metrics) or self._losses(metrics)
        if not problem:
            self._last = {name: metrics[f"{name}/loss"] for name in self._scales}
        return problem

    def forget(self) -> None:
        """Start anew after a roll-back."""
        self._last = {}
        self._skipped = {name: scale.skipped for name, scale in self._scales.items()}

    def _updates(self) -> str | None:
        for name, scale in self._scales.items():
            skipped = scale.skipped - self._skipped[name]
            self._skipped[name] = scale.skipped
            if scale.dynamic:
                if scale.cur_scale < SMALLEST_SCALE:
                    return (
                        f"the loss scale of the {name} fell to {scale.cur_scale:g}: its gradients"
                        f" overflow by themselves; compute in bfloat16, or lower optim.{name}.lr"
                    )
            elif skipped and self._policy.action != "skip":
                return (
                    f"{skipped} updates of the {name} had gradients that are not finite; lower"
                    f" optim.{name}.lr, set optim.{name}.max_gradient_norm, or let"
                    " divergence.action skip them or roll_back"
                )
            elif scale.skipped_in_a_row > self._policy.max_skipped_in_a_row:
                return (
                    f"{scale.skipped_in_a_row} updates of the {name} in a row had gradients that"
                    f" are not finite; lower optim.{name}.lr"
                )
        return None

    def _losses(self, metrics: Mapping[str, float]) -> str | None:
        for name in self._scales:
            loss, last = metrics[f"{name}/loss"], self._last.get(name)
            if not math.isfinite(loss):
                return f"the loss of the {name} is {loss}; lower optim.{name}.lr"
            if self._policy.explosion is None or last is None:
                continue
            if abs(loss) > self._policy.explosion * max(abs(last), 1.0):
                return (
                    f"the loss of the {name} rose from {last:.4g} to {loss:.4g}; lower"
                    f" optim.{name}.lr, or raise divergence.explosion"
                )
        return None
