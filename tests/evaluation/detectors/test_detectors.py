"""Weights files, detectors and preprocessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.detectors import inception_weights
from evaluation.detectors.base import (
    DetectorConfig,
    check_finite,
    exact_arithmetic,
    load_checked,
    weights_digest,
)
from evaluation.detectors.effnet import TAPS, load_effnet, weights_path
from evaluation.detectors.fold_batchnorm import fold_effnet, fold_inception
from evaluation.detectors.inception import FidInception
from evaluation.detectors.inception_weights import (
    BLOCKS,
    BRANCHES,
    STEM,
    check_weights,
    from_nvidia,
    load_inception_weights,
    nvidia_unit,
    tensors_digest,
)
from evaluation.detectors.registry import build_detector
from evaluation.detectors.resize import PREPROCESSINGS
from evaluation.detectors.vit import VisionTransformer, VitConfig, load_clip, load_dino


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = FidInception()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("bn.bias"):
            tensor.normal_(0, 0.1)
    return network.state_dict()


def to_nvidia(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename to NVIDIA's keys (gammas are 1 in `weights`)."""
    units = dict(STEM)
    for block, (name, kind) in BLOCKS.items():
        units |= {f"{block}.{theirs}": f"{name}.{ours}" for theirs, ours in BRANCHES[kind].items()}
    tensors = {f"output.{part}": weights[f"fc.{part}"] for part in ("weight", "bias")}
    for theirs, ours in units.items():
        for parameter, name in inception_weights.PARAMETERS.items():
            tensors[f"layers.{theirs}.{parameter}"] = weights[f"{ours}.{name}"]
    return tensors


def test_nvidia_names_are_a_bijection_of_the_94_units(weights: dict[str, torch.Tensor]) -> None:
    renamed = from_nvidia(to_nvidia(weights))
    floats = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    assert len(floats) == 472
    assert tensors_digest(renamed) == tensors_digest(floats)
    assert tensors_digest(check_weights(weights, "file")) == tensors_digest(floats)
    with pytest.raises(ValueError, match=r"mixed_3\.tower_9"):
        nvidia_unit("mixed_3.tower_9")


class _Holder(nn.Module):
    """A TorchScript module with NVIDIA's nested names."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        groups: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            head, _, rest = key.partition(".")
            if rest:
                groups.setdefault(head, {})[rest] = tensor
            else:
                self.register_buffer(head, tensor)
        for head, group in groups.items():
            self.add_module(head, _Holder(group))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_all_kinds_of_weights_files_give_the_same_identity(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    public, nvidia, ours = (tmp_path / name for name in ("a.pth", "b.pt", "c.safetensors"))
    torch.save(weights, public)
    torch.jit.script(_Holder(to_nvidia(weights))).save(nvidia)
    inception_weights.convert_inception(nvidia, ours)
    digest = weights_digest(public, None)
    digests = {
        tensors_digest(load_inception_weights(path, sha256))
        for path, sha256 in ((public, digest), (nvidia, ""), (ours, ""))
    }
    assert len(digests) == 1
    config = DetectorConfig("inception", str(ours))
    detector = build_detector(config).with_taps(("pool", "spatial"))
    assert detector.identity["weights_sha256"] in digests
    features = detector(torch.randint(0, 256, (1, 3, 20, 20), dtype=torch.uint8))
    assert {tap: values.shape[1] for tap, values in features.items()} == {
        "pool": 2048,
        "spatial": 2023,
    }


class _Unit(nn.Module):
    """A conv unit of the tiny script."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, self.weight).relu()


class _Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = _Unit(4, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class _Layers(nn.Module):
    """What lies behind the resizing, with the names that the spatial tap is found by."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _Unit(3, 4)
        self.pool = nn.AvgPool2d(17, 17)
        self.mixed_6 = _Mixed()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixed_6(self.pool(self.conv(x))).mean((2, 3))


class _Script(nn.Module):
    """A tiny detector of the calling convention of NVIDIA's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = _Layers()
        self.output = nn.Linear(9, 5)

    def forward(
        self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False
    ) -> torch.Tensor:
        grid = torch.nn.functional.affine_grid(
            torch.eye(2, 3)[None].repeat(len(img), 1, 1), [len(img), 3, 299, 299], False
        )
        x = torch.nn.functional.grid_sample(img.float(), grid, "bilinear", "border", False)
        features = self.layers((x - 128) / 128)
        if return_features:
            return features
        bias = torch.zeros_like(self.output.bias) if no_output_bias else self.output.bias
        return torch.nn.functional.linear(features, self.output.weight, bias).softmax(1)


class _Features(nn.Module):
    """What StyleGAN's vgg16.pt answers: features only."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return img.float().mean((2, 3)) if return_features else img.float()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_users_script_gives_pool_spatial_and_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    script, path = _Script(), tmp_path / "detector.pt"
    torch.jit.script(script).save(path)
    detector = build_detector(DetectorConfig("torchscript", str(path)))
    assert detector.identity["name"] == "torchscript"  # not Inception's tensors: never called FID
    assert detector.widths == {"pool": 9, "spatial": 7 * 17 * 17, "logits_unbiased": 5, "logits": 5}
    images = torch.randint(0, 256, (3, 3, 299, 299), dtype=torch.uint8)
    taps = detector(images)
    x = images.float()
    with torch.inference_mode():
        torch.testing.assert_close(taps["pool"], script(x, return_features=True))
        torch.testing.assert_close(taps["logits"].softmax(1), script(x))
        unbiased = script(x, no_output_bias=True)
        torch.testing.assert_close(taps["logits_unbiased"].softmax(1), unbiased)
        maps = script.layers.mixed_6.conv(script.layers.pool(script.layers.conv((x - 128) / 128)))
    expected = maps[:, :7].permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(taps["spatial"], expected)
    assert set(detector.with_taps(["pool"])(images)) == {"pool"}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripts_of_features_only_serve_for_precision_and_recall(tmp_path: Path) -> None:
    path = tmp_path / "vgg16.pt"
    torch.jit.script(_Features()).save(path)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    for name, tap in (("vgg16", "features"), ("torchscript", "pool")):
        detector = build_detector(DetectorConfig(name, str(path)))
        assert detector.widths == {tap: 3}
        torch.testing.assert_close(detector(images)[tap], images.float().mean((2, 3)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripts_of_another_convention_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.jit.script(nn.Linear(3, 2)).save(path)
    with pytest.raises(ValueError, match=r"no detector that answers m\(images, return_features"):
        build_detector(DetectorConfig("torchscript", str(path)))
    for content in ("text", ""):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"cannot be read as a TorchScript detector: .+"):
            build_detector(DetectorConfig("torchscript", str(path)))


def test_wrong_weights_are_rejected_with_their_hash(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(weights, path)
    with pytest.raises(ValueError, match=f"has sha256 {weights_digest(path, None)}, expected 6726"):
        load_inception_weights(path)
    broken = {k: v for k, v in weights.items() if k != "fc.bias"}
    with pytest.raises(ValueError, match=r"lacks tensor fc\.bias"):
        check_weights(broken, "file")
    with pytest.raises(ValueError, match="unknown tensor extra"):
        check_weights(weights | {"extra": torch.zeros(1)}, "file")
    with pytest.raises(ValueError, match="shape"):
        check_weights(weights | {"fc.bias": torch.zeros(1000)}, "file")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="cannot be read as a plain state dict"):
        load_checked(tmp_path / "text.pth", None)
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match="plain state dict: it is empty or cut off"):
        load_checked(tmp_path / "empty.pth", None)
    with pytest.raises(ValueError, match="needs its weights file"):
        build_detector(DetectorConfig("inception"))


def test_folding_changes_nothing_but_rounding(weights: dict[str, torch.Tensor]) -> None:
    x = torch.randn(1, 3, 299, 299)
    plain, folded = FidInception(), FidInception()
    for network in (plain, folded):
        network.load_state_dict(weights)
        network.eval()
    with torch.inference_mode():
        a, b = plain(x)["pool"], fold_inception(folded)(x)["pool"]
    assert (a - b).norm() <= 5e-7 * a.norm()


def test_effnet_taps_and_real_weights() -> None:
    weights, _ = load_checked(weights_path(), None)
    network = load_effnet(weights)
    x = torch.randn(2, 3, 112, 112)
    with torch.inference_mode():
        plain = network(x)
        logits = network.logits(x)
        folded = fold_effnet(network)(x)
    assert {tap: values.shape[1] for tap, values in plain.items()} == TAPS
    assert logits.shape == (2, 1000)
    for tap in TAPS:
        assert (plain[tap] - folded[tap]).norm() <= 1e-5 * plain[tap].norm()


def test_effnet_knows_a_cat() -> None:
    """skimage's cat is a cat (ImageNet 281..285): weights, padding and preprocessing agree."""
    data = pytest.importorskip("skimage.data")
    image = torch.from_numpy(data.chelsea()[:300, 75:375].copy()).permute(2, 0, 1)[None]
    weights, _ = load_checked(weights_path(), None)
    with torch.inference_mode():
        logits = load_effnet(weights).logits(PREPROCESSINGS["half_pixel224"](image))
    assert 281 <= int(logits.argmax()) <= 285


def test_vision_transformers_load_from_the_official_names() -> None:
    torch.manual_seed(0)
    dino = VisionTransformer(VitConfig(width=64, depth=2, positions=37)).eval()
    loaded = load_dino(dino.state_dict() | {"mask_token": torch.zeros(1, 64)})
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x)["cls"], dino(x)["cls"])
    clip = VisionTransformer(VitConfig(64, 2, 24, clip=True, projected=32)).eval()
    with torch.inference_mode():
        embedding = load_clip(to_hugging_face(clip.state_dict()))(torch.randn(2, 3, 336, 336))
    torch.testing.assert_close(embedding["embedding"].norm(dim=1), torch.ones(2))
    with pytest.raises(ValueError, match="no vision transformer"):
        load_dino({"fc.weight": torch.zeros(1)})


def to_hugging_face(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    vision = "vision_model."
    renamed = {
        vision + "embeddings.class_embedding": state["cls_token"].flatten(),
        vision + "embeddings.position_embedding.weight": state["pos_embed"][0],
        vision + "embeddings.patch_embedding.weight": state["patch_embed.proj.weight"],
        "visual_projection.weight": state["head.weight"],
        "text_model.final_layer_norm.bias": torch.zeros(1),
    }
    for part in ("weight", "bias"):
        renamed[f"{vision}pre_layrnorm.{part}"] = state[f"norm_pre.{part}"]
        renamed[f"{vision}post_layernorm.{part}"] = state[f"norm.{part}"]
        for i in range(2):
            block, layer = f"blocks.{i}.", f"{vision}encoder.layers.{i}."
            q, k, v = state[f"{block}attn.qkv.{part}"].chunk(3)
            heads = {"q_proj": q, "k_proj": k, "v_proj": v}
            heads["out_proj"] = state[f"{block}attn.proj.{part}"]
            renamed |= {f"{layer}self_attn.{name}.{part}": t for name, t in heads.items()}
            for theirs, ours in (("layer_norm1", "norm1"), ("layer_norm2", "norm2")):
                renamed[f"{layer}{theirs}.{part}"] = state[f"{block}{ours}.{part}"]
            for name in ("mlp.fc1", "mlp.fc2"):
                renamed[f"{layer}{name}.{part}"] = state[f"{block}{name}.{part}"]
    return renamed


def test_nan_features_are_rejected() -> None:
    features = torch.zeros(3, 2)
    features[1, 0] = torch.nan
    with pytest.raises(ValueError, match="image 65 has NaN or infinite features"):
        check_finite(features, range(64, 67), "inception, tap pool")


def test_exact_arithmetic_restores_the_settings_of_training() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with exact_arithmetic():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_unknown_preprocessing_and_taps_are_rejected() -> None:
    with pytest.raises(ValueError, match="it takes half_pixel112"):
        build_detector(DetectorConfig(preprocessing="tf1"))
    with pytest.raises(ValueError, match="has the taps block4"):
        build_detector(DetectorConfig()).with_taps(("pool",))
    with pytest.raises(ValueError, match="is not one of"):
        build_detector(DetectorConfig("resnet"))


def test_tf1_at_its_own_size_is_the_identity() -> None:
    image = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8)
    torch.testing.assert_close(PREPROCESSINGS["tf1"](image), (image.float() - 128) / 128)
    assert np.isclose(float(PREPROCESSINGS["pytorch_fid"](image).max()), 1, atol=0.02)
