"""TorchScript detectors, run as they are (docs/reference/evaluation.md#1.5).

NVIDIA's calling convention: `m(u, return_features=True)` gives features of images 0..255 of any
size; `m.output` is the classifier on them, and `m.layers` the network behind the resizing. What a
module lacks of this, its detector has no tap for.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.detectors.inception import SPATIAL_CHANNELS
from evaluation.detectors.resize import tf1

PROBE_SIZE = 64


def load_script(path: Path, device: torch.device | str = "cpu") -> Any:
    """Load a TorchScript module in eval mode. Raises ValueError if the file is not one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit.load is deprecated, but the files are not
            module = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} cannot be read as a TorchScript detector: {reason}") from None
    return module.eval()


class ScriptedDetector:
    """A TorchScript detector as a network: images 0..255, float32 [B, 3, H, W], to features by tap.

    Attributes:
        widths: Number of features of each tap that the module can give: `pool`, and as far as it
            has them `spatial`, `logits_unbiased` and `logits`.

    Raises:
        ValueError: The module does not follow the calling convention.
    """

    def __init__(self, module: Any, path: Path) -> None:
        self._module = module
        probe = torch.full((1, 3, PROBE_SIZE, PROBE_SIZE), 128.0)
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        try:
            with torch.inference_mode():
                features = self._taps(probe.to(device), self._known())
        except RuntimeError as error:
            reason = str(error).strip().rpartition("\n")[2] or type(error).__name__
            raise ValueError(
                f"{path} is no detector that answers m(images, return_features=True): {reason}"
            ) from None
        self.widths = {tap: values.shape[1] for tap, values in features.items()}
        self._wanted: tuple[str, ...] = tuple(self.widths)

    def restricted(self, taps: Sequence[str]) -> ScriptedDetector:
        """Compute only these taps from now on; returns itself."""
        self._wanted = tuple(taps)
        return self

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features [B, D] of each wanted tap."""
        return self._taps(images, self._wanted)

    def _known(self) -> tuple[str, ...]:
        has_classifier = hasattr(self._module, "output")
        has_layers = hasattr(self._module, "layers") and hasattr(self._module.layers, "mixed_6")
        return (
            "pool",
            *(("spatial",) if has_layers else ()),
            *(("logits_unbiased", "logits") if has_classifier else ()),
        )

    def _taps(self, images: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        taps = {}
        if set(wanted) - {"spatial"}:
            taps["pool"] = self._module(images, return_features=True)
        if {"logits", "logits_unbiased"} & set(wanted):
            taps["logits_unbiased"] = taps["pool"] @ self._module.output.weight.T
            taps["logits"] = taps["logits_unbiased"] + self._module.output.bias
        if "spatial" in wanted:
            taps["spatial"] = self._spatial(images)
        return {tap: taps[tap] for tap in wanted}

    def _spatial(self, images: Tensor) -> Tensor:
        """Return the first channels of mixed_6's 1x1 branch in H, W, C order, [B, H * W * 7]."""
        x = tf1(images)
        for name, layer in self._module.layers.named_children():
            if name == "mixed_6":
                break
            x = layer(x)
        maps = self._module.layers.mixed_6.conv(x)[:, :SPATIAL_CHANNELS]
        flat: Tensor = maps.permute(0, 2, 3, 1).flatten(1)
        return flat
