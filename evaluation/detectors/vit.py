"""Vision transformers for FD-DINOv2 and CMMD, from their official weights.

One module serves DINOv2 (ViT-S/B/L-14: layer scale, exact GELU, final norm) and the image tower of
CLIP ViT-L/14@336 (norm before the blocks, quick GELU, projection). Names are DINOv2's; CLIP's, as
in the Hugging Face file, are renamed on loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 14
HEAD_WIDTH = 64
DINO_OFFSET = 0.1
"""DINOv2 adds this to the number of patches per edge when it resizes position embeddings."""


@dataclass(frozen=True)
class VitConfig:
    """Shape of a transformer.

    Attributes:
        width: Features per token; heads are 64 wide.
        depth: Number of blocks.
        positions: Edge of the stored grid of position embeddings, in patches.
        clip: The CLIP variant, see the module's description.
        projected: Width of CLIP's embedding.
    """

    width: int
    depth: int
    positions: int
    clip: bool = False
    projected: int = 0


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, T, width]."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, HEAD_WIDTH)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.proj(y.transpose(1, 2).reshape(batch, tokens, width))
        return projected


class Mlp(nn.Module):
    """Two layers with a GELU between them; `quick` is x sigmoid(1.702 x)."""

    def __init__(self, width: int, *, quick: bool) -> None:
        super().__init__()
        self.quick = quick
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, T, width]."""
        x = self.fc1(x)
        y: Tensor = self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))
        return y


class LayerScale(nn.Module):
    """A learned factor per feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return x gamma."""
        return x * self.gamma


class Block(nn.Module):
    """Attention and MLP, each after a norm and with a shortcut."""

    def __init__(self, config: VitConfig, eps: float) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = Attention(width)
        self.mlp = Mlp(width, quick=config.clip)
        self.ls1 = nn.Identity() if config.clip else LayerScale(width)
        self.ls2 = nn.Identity() if config.clip else LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, T, width]."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        y: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return y


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens."""

    def __init__(self, width: int, *, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, patches, width], row by row."""
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class VisionTransformer(nn.Module):
    """Images (normalised by the preprocessing) to the class token's feature, [B, D]."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        width, eps = config.width, 1e-5 if config.clip else 1e-6
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.positions**2, width))
        self.patch_embed = PatchEmbed(width, bias=not config.clip)
        self.norm_pre = nn.LayerNorm(width, eps) if config.clip else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, eps) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps)
        self.head = nn.Linear(width, config.projected, bias=False) if config.clip else nn.Identity()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"cls": [B, D]}; for CLIP {"embedding": [B, D]} of unit norm."""
        tokens = self.patch_embed(x)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1)
        tokens = self.norm_pre(tokens + self._positions(x.shape[-1] // PATCH))
        for block in self.blocks:
            tokens = block(tokens)
        feature = self.head(self.norm(tokens[:, 0]))
        return {"embedding": F.normalize(feature)} if self.config.clip else {"cls": feature}

    def _positions(self, edge: int) -> Tensor:
        """Return position embeddings of an edge x edge grid, resized as DINOv2 does."""
        stored = self.config.positions
        if edge == stored:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].reshape(1, stored, stored, -1).permute(0, 3, 1, 2)
        scale = (edge + DINO_OFFSET) / stored
        grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def load_dino(weights: Mapping[str, Tensor]) -> VisionTransformer:
    """Return DINOv2 with the weights of its official file (`dinov2_vitl14_pretrain.pth`, S or B).

    Raises:
        ValueError: The tensors are not those of such a network.
    """
    used = {key: tensor for key, tensor in weights.items() if key != "mask_token"}
    return _load(used, clip=False)


def load_clip(weights: Mapping[str, Tensor]) -> VisionTransformer:
    """Return CLIP's image tower with the weights of its Hugging Face file (`model.safetensors`).

    Raises:
        ValueError: The tensors are not those of such a network.
    """
    prefix = "vision_model."
    vision = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    try:
        renamed = {
            "cls_token": vision["embeddings.class_embedding"].reshape(1, 1, -1),
            "pos_embed": vision["embeddings.position_embedding.weight"][None],
            "patch_embed.proj.weight": vision["embeddings.patch_embedding.weight"],
            "head.weight": weights["visual_projection.weight"],
        }
        for ours, theirs in (("norm_pre", "pre_layrnorm"), ("norm", "post_layernorm")):
            for part in ("weight", "bias"):
                renamed[f"{ours}.{part}"] = vision[f"{theirs}.{part}"]
        for layer in sorted({k.split(".")[2] for k in vision if k.startswith("encoder.layers.")}):
            renamed |= _clip_block(vision, f"encoder.layers.{layer}", f"blocks.{layer}")
    except KeyError as error:
        raise ValueError(f"the file lacks the tensor {error} of CLIP's image tower") from None
    return _load(renamed, clip=True)


def _clip_block(vision: Mapping[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """Return one block's tensors under our names."""
    names = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    block = {}
    for part in ("weight", "bias"):
        for our_name, their_name in names.items():
            block[f"{ours}.{our_name}.{part}"] = vision[f"{theirs}.{their_name}.{part}"]
        heads = [vision[f"{theirs}.self_attn.{name}_proj.{part}"] for name in "qkv"]
        block[f"{ours}.attn.qkv.{part}"] = torch.cat(heads)
    return block


def _load(weights: Mapping[str, Tensor], *, clip: bool) -> VisionTransformer:
    """Build the network whose shape the tensors imply, and load them."""
    if "pos_embed" not in weights or "patch_embed.proj.weight" not in weights:
        raise ValueError("the file holds no vision transformer with pos_embed and patch_embed")
    depth = len({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    positions = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    width = weights["pos_embed"].shape[2]
    projected = weights["head.weight"].shape[0] if clip else 0
    with torch.device("meta"):
        network = VisionTransformer(VitConfig(width, depth, positions, clip, projected))
    try:
        tensors = {key: tensor.to(torch.float32) for key, tensor in weights.items()}
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the file does not fit the transformer it appears to be: {reason}"
        ) from None
    return network.eval().requires_grad_(False)
