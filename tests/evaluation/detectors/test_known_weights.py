"""Only weights that are known by their digest give values the names of the field."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from evaluation import __main__ as cli
from evaluation.detectors import inception_weights
from evaluation.detectors.base import Detector, DetectorConfig, weights_digest
from evaluation.detectors.inception import FidInception
from evaluation.detectors.inception_weights import tensors_digest
from evaluation.detectors.registry import build_detector
from evaluation.metrics.registry import MetricSettings


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return Inception weights that nobody published, as `.pth` and as `.safetensors`."""
    torch.manual_seed(0)
    tensors = FidInception().state_dict()
    root = tmp_path_factory.mktemp("weights")
    paths = {"pth": root / "inception.pth", "safetensors": root / "inception.safetensors"}
    torch.save(tensors, paths["pth"])
    save_file({k: v for k, v in tensors.items() if v.is_floating_point()}, paths["safetensors"])
    return paths


def test_values_of_unknown_inception_weights_are_not_called_fid(
    tmp_path: Path, weights: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    images, generator = tmp_path / "images", np.random.default_rng(0)
    images.mkdir()
    for name in "abcd":
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{name}.png")
    out = tmp_path / "result.json"
    arguments = [
        "run", str(images), "--reference", str(images), "--out", str(out),
        "--detector", "inception", "--weights", str(weights["safetensors"]),
        "--metrics", "fd:pool,fd:spatial,is_chunks:logits_unbiased,pr:pool,kid:pool",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
        assert cli.main(arguments) == 0
    detector = json.loads(out.read_text())["detector"]
    mark = f"inception-{detector['weights_sha256'][:8]}"
    assert set(json.loads(out.read_text())["metrics"]) == {
        f"fd_{mark}_pool",
        f"fd_{mark}_spatial",
        f"is_chunks_{mark}_logits_unbiased",
        f"pr_{mark}_pool",
        f"kid_{mark}_pool",
    }
    shown = capsys.readouterr().out
    assert "fid" not in shown
    assert "these are not FIDs" in shown


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_digest_that_the_user_states_makes_no_weights_known(
    weights: dict[str, Path], kind: str
) -> None:
    stated = weights_digest(weights[kind], None)
    config = DetectorConfig("inception", str(weights[kind]), weights_sha256=stated)
    assert build_detector(config).weights == "unknown"


def test_the_published_file_and_what_is_converted_from_it_are_known(
    tmp_path: Path, weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    published = weights_digest(weights["pth"], None)
    monkeypatch.setattr(inception_weights, "PUBLIC_SHA256", published)
    converted = tmp_path / "converted.safetensors"
    assert cli.main(["convert", str(weights["pth"]), str(converted)]) == 0
    for path in (weights["pth"], converted):
        detector = build_detector(DetectorConfig("inception", str(path)))
        assert (detector.weights, detector.label) == ("published", "inception")
        assert "fid" in _names(detector)
    tensors = inception_weights.load_inception_weights(weights["pth"])
    tensors["fc.bias"] = tensors["fc.bias"] + 1
    metadata = {"tensors_sha256": tensors_digest(tensors), "source_sha256": "0" * 64}
    save_file(tensors, converted, metadata)
    assert build_detector(DetectorConfig("inception", str(converted))).weights == "unknown"
    metadata = {"tensors_sha256": "0" * 64, "source_sha256": published}
    save_file(tensors, converted, metadata)
    assert build_detector(DetectorConfig("inception", str(converted))).weights == "unknown"


def _names(detector: Detector) -> list[str]:
    return [*MetricSettings().requests(detector)]
