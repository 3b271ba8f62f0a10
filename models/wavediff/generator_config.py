"""The shape of a generator (docs/reference/wavediff.md#3)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from models.layers import ComputeDtype, norm_groups


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Shape of a generator; the defaults are WaveDiff's wavelet generator.

    Attributes:
        base_channels: Channels at the highest resolution.
        channel_multipliers: Channels of each level, in multiples of base_channels.
        blocks_per_level: Residual blocks of a level on the way down (one more on the way up).
        attention_resolutions: Feature-map edges at which levels have self-attention; the bottleneck
            always has it.
        patch_size: Edge of the squares of pixels that are folded into channels.
        latent_dim: Width of the latent z.
        embedding_dim: Width of the mapped latent that the norms are modulated with.
        mapping_layers: Hidden layers of the latent mapping, after its first one.
        frequency_blocks: Resample by Haar bands, with details handed across (else by FIR filters).
        frequency_bottleneck: Run the bottleneck's blocks on the low band; the second one also, and
            first, on the features (as in the official code; the paper has two alike).
        frequency_pyramid: Feed the input's Haar bands to every level (else FIR-smoothed inputs).
        time_conditional: Condition on the timestep.
        fir: Resample FIR blocks by (1, 3, 3, 1) filters, else by means and repetition.
        rescale: Divide sums of two paths by sqrt(2).
        adaptive_norms: Norms of a block that the latent modulates (1: only the first).
        input_pyramid: How reduced inputs enter: through convolutions, plainly, or not at all.
        combine: How plainly reduced inputs (`skip`) join the features.
        output_pyramid: Sum an image of every level (`skip`), or make it from the last one.
        centered: Inputs are in [-1, 1]; else in [0, 1].
        tanh: Bound the output to [-1, 1].
        compute_dtype: Precision of the computation; weights are always float32.
        recompute_blocks: Keep only the layers' inputs for the backward pass and run the layers
            again there: about a third more time, a fraction of the memory.
    """

    RENAMED: ClassVar[dict[str, str]] = {"dtype": "compute_dtype"}

    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks_per_level: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    patch_size: int = 1
    latent_dim: int = 100
    embedding_dim: int = 256
    mapping_layers: int = 4
    frequency_blocks: bool = True
    frequency_bottleneck: bool = True
    frequency_pyramid: bool = True
    time_conditional: bool = True
    fir: bool = True
    rescale: bool = True
    adaptive_norms: Literal[1, 2] = 2
    input_pyramid: Literal["none", "residual", "skip"] = "residual"
    combine: Literal["sum", "cat"] = "sum"
    output_pyramid: Literal["none", "skip"] = "none"
    centered: bool = True
    tanh: bool = True
    compute_dtype: ComputeDtype = "float32"
    recompute_blocks: bool = False

    def __post_init__(self) -> None:
        positive = ("base_channels", "blocks_per_level", "patch_size", "latent_dim",
                    "embedding_dim")  # fmt: skip
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(
                f"channel_multipliers={self.channel_multipliers} must be positive, one per level"
            )
        if self.mapping_layers < 0:
            raise ValueError(f"mapping_layers={self.mapping_layers} must not be negative")
        if self.adaptive_norms == 1 and self.frequency_blocks:
            raise ValueError(
                "adaptive_norms=1 exists only for FIR blocks; set frequency_blocks=false"
            )
        for multiplier in self.channel_multipliers:
            norm_groups(self.base_channels * multiplier)

    def unread(self) -> dict[str, str]:
        """Return what the chosen kinds of blocks and pyramids have no use for."""
        pyramid, found = self.input_pyramid, dict[str, str]()
        if pyramid != "skip":
            found["combine"] = f"input_pyramid={pyramid} joins no plain inputs; set it to skip"
        if pyramid != "residual":
            found["frequency_pyramid"] = f"input_pyramid={pyramid}; set it to residual"
        filtered = pyramid == "skip" or (pyramid == "residual" and not self.frequency_pyramid)
        if self.frequency_blocks and not filtered and self.output_pyramid == "none":
            found["fir"] = "all resampling is by Haar bands; set frequency_blocks=false"
        return found

    def check_resolution(self, resolution: int) -> None:
        """Raise ValueError unless feature maps of this edge can be halved at every level."""
        levels = len(self.channel_multipliers)
        halvings = levels - 1 + self.frequency_bottleneck
        unit = self.patch_size * 2**halvings
        if resolution % unit or resolution < unit:
            raise ValueError(
                f"the generator's input has an edge of {resolution}, not a multiple of {unit}"
                f" (patch_size {self.patch_size}, {halvings} halvings); shorten channel_multipliers"
                " or change the resolution"
            )

    def without_wavelets(self) -> GeneratorConfig:
        """Return the plain NCSN++ of the same sizes."""
        return dataclasses.replace(
            self, frequency_blocks=False, frequency_bottleneck=False, frequency_pyramid=False
        )
