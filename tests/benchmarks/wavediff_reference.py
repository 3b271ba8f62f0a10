"""WaveDiff's definitions written out plainly: what the benchmarks measure against.

FIR resampling by zero-stuffing, padding and a full convolution of single channels; Haar transforms
by dense matrices that are rebuilt in every call; unfused attention and norms.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from models.objective import Example, Networks
from models.wavediff import blocks, data_space, discriminator, generator, layers
from models.wavediff.objective import WaveDiffObjective, mean_squared_gradient

TAPS = (1.0, 3.0, 3.0, 1.0)


def upfirdn2d(
    x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)
) -> Tensor:
    """Insert zeros, pad, convolve at full resolution, and keep every `down`-th pixel."""
    batch, channels, height, width = x.shape
    out = x.reshape(-1, height, 1, width, 1, 1)
    out = F.pad(out, (0, 0, 0, up - 1, 0, 0, 0, up - 1))
    out = out.reshape(-1, 1, height * up, width * up)
    out = F.pad(out, (pad[0], pad[1], pad[0], pad[1]))
    out = F.conv2d(out, kernel.flip(0, 1)[None, None])[:, :, ::down, ::down]
    return out.reshape(batch, channels, *out.shape[2:])


def fir_down(x: Tensor) -> Tensor:
    taps = torch.tensor(TAPS, device=x.device)
    return upfirdn2d(x, torch.outer(taps, taps) / 64, down=2, pad=(1, 1))


def fir_up(x: Tensor) -> Tensor:
    taps = torch.tensor(TAPS, device=x.device)
    return upfirdn2d(x, torch.outer(taps, taps) / 16, up=2, pad=(2, 1))


def analysis_matrices(size: int) -> tuple[Tensor, Tensor]:
    """Return the low and high matrices, (N/2) x N each, filled entry by entry on the CPU."""
    low, high = (torch.zeros(size // 2, size, device="cpu") for _ in range(2))
    for row in range(size // 2):
        for column, sign in ((2 * row, 1), (2 * row + 1, -1)):
            low[row, column] = math.sqrt(0.5)
            high[row, column] = sign * math.sqrt(0.5)
    return low, high


def matrices(size: int, device: torch.device) -> list[Tensor]:
    return [matrix.to(device) for matrix in analysis_matrices(size)]


def haar_dwt(x: Tensor, scale: float = 1.0) -> Tensor:
    rows, columns = (matrices(n, x.device) for n in x.shape[-2:])
    halves = [torch.matmul(row, x) for row in rows]
    return torch.cat([torch.matmul(h, c.t()) for h in halves for c in columns], 1) * scale


def haar_idwt(y: Tensor, scale: float = 1.0) -> Tensor:
    rows, columns = (matrices(2 * n, y.device) for n in y.shape[-2:])
    ll, lh, hl, hh = (y / scale).chunk(4, 1)
    low = torch.matmul(ll, columns[0]) + torch.matmul(lh, columns[1])
    high = torch.matmul(hl, columns[0]) + torch.matmul(hh, columns[1])
    return torch.matmul(rows[0].t(), low) + torch.matmul(rows[1].t(), high)


def low_band(x: Tensor) -> Tensor:
    return haar_dwt(x, scale=0.5)[:, : x.shape[1]]


def adaptive_norm(self: layers.AdaptiveGroupNorm, x: Tensor, latent: Tensor) -> Tensor:
    scale, shift = self.style(latent)[:, :, None, None].chunk(2, 1)
    return scale * F.group_norm(x, self.groups, eps=1e-6) + shift


def attention(self: layers.Attention, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    h = self.GroupNorm_0(x)
    q, k, v = (
        torch.einsum("bchw,cd->bdhw", h, m.W) + m.b[:, None, None]
        for m in (self.NIN_0, self.NIN_1, self.NIN_2)
    )
    weights = torch.einsum("bchw,bcij->bhwij", q, k) / math.sqrt(channels)
    weights = weights.reshape(batch, height, width, -1).softmax(-1)
    weights = weights.reshape(batch, height, width, height, width)
    h = torch.einsum("bhwij,bcij->bchw", weights, v)
    h = torch.einsum("bchw,cd->bdhw", h, self.NIN_3.W) + self.NIN_3.b[:, None, None]
    return layers.residual(x, h, self.rescale)


def discriminator_backward(
    objective: WaveDiffObjective,
    networks: Networks,
    example: Example,
    step: int,
) -> None:
    """Accumulate the gradients of real, R1 and fake one after the other, as the official loop."""
    critic = networks["discriminator"]
    with torch.no_grad():
        t, y_t, y_tp1, _, fake = objective._generate(networks, example, "discriminator")
    y_t.requires_grad_()
    logits = critic(y_t, t, y_tp1)
    F.softplus(-logits).mean().backward(retain_graph=True)
    if step % objective.r1_interval == 0:
        (objective.r1_gamma / 2 * mean_squared_gradient(logits, y_t)).backward()
    F.softplus(critic(fake, t, y_tp1)).mean().backward()


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Run the networks on the functions above."""
    plain = {
        blocks: ("fir_down", "fir_up", "haar_dwt", "haar_idwt", "upfirdn2d"),
        generator: ("fir_down", "fir_up", "haar_dwt", "haar_idwt"),
        discriminator: ("fir_down",),
        data_space: ("haar_dwt", "haar_idwt"),
    }
    with contextlib.ExitStack() as stack:
        for module, names in plain.items():
            for name in names:
                stack.enter_context(mock.patch.object(module, name, globals()[name]))
        stack.enter_context(mock.patch.object(blocks, "mean_down", low_band))
        stack.enter_context(mock.patch.object(layers.AdaptiveGroupNorm, "forward", adaptive_norm))
        stack.enter_context(mock.patch.object(layers.Attention, "forward", attention))
        yield
