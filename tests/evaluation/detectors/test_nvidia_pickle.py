"""NVIDIA's pickled Inception: its tensors are read, its source text is not executed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation import __main__ as cli
from evaluation.detectors.base import DetectorConfig, weights_digest
from evaluation.detectors.inception import FidInception
from evaluation.detectors.inception_weights import load_inception_weights, tensors_digest
from evaluation.detectors.registry import build_detector
from tests.evaluation.detectors.test_detectors import to_nvidia
from tests.models.convert.test_rdm import Hostile, module, official_module

__all__ = ["official_module"]  # a fixture
pytestmark = pytest.mark.usefixtures("official_module")


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return FidInception().state_dict()


def write(path: Path, tensors: dict[str, torch.Tensor], **attributes: object) -> Path:
    """Write a stand-in of NVIDIA's file: module objects whose source text raises if executed."""
    inits = {"_init_args": (), "_init_kwargs": {}}
    network: Any = module("InceptionV3Detector", to_nvidia(tensors), **inits | attributes)
    path.write_bytes(pickle.dumps(network))
    return path


def test_its_weights_are_those_of_the_other_kinds(
    tmp_path: Path, tensors: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "inception-2015-12-05.pkl", tensors)
    torch.save(tensors, tmp_path / "public.pth")
    digest = weights_digest(tmp_path / "public.pth", None)
    same = tensors_digest(load_inception_weights(tmp_path / "public.pth", digest))
    assert tensors_digest(load_inception_weights(path)) == same
    detector = build_detector(DetectorConfig("inception", str(path)))
    assert (detector.identity["weights_sha256"], detector.weights) == (same, "unknown")
    assert cli.main(["convert", str(path), str(tmp_path / "w.safetensors")]) == 0
    assert f"sha256 of the tensors {same}" in capsys.readouterr().out
    assert tensors_digest(load_inception_weights(tmp_path / "w.safetensors")) == same


def test_other_pickles_are_rejected(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    good = write(tmp_path / "good.pkl", tensors)
    cut, bad = tmp_path / "cut.pkl", tmp_path / "bad.pkl"
    cut.write_bytes(good.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"cut\.pkl: .*truncated"):
        load_inception_weights(cut)
    write(bad, tensors, forward=Hostile())
    with pytest.raises(ValueError, match=r"bad\.pkl: .*builtins\.exec.*nothing was executed"):
        load_inception_weights(bad)
    bad.write_bytes(pickle.dumps({"mu": 1}))
    with pytest.raises(ValueError, match=r"bad\.pkl holds a dict, expected a network"):
        load_inception_weights(bad)
    bad.write_bytes(pickle.dumps(module("Other", {"layers.conv.gain": torch.ones(3)})))
    with pytest.raises(ValueError, match=r"bad\.pkl.*'layers\.conv\.gain' is not one of NVIDIA's"):
        load_inception_weights(bad)
    with pytest.raises(ValueError, match=rf"good\.pkl has sha256 .*, expected {'0' * 64}"):
        load_inception_weights(good, "0" * 64)
