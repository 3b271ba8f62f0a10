"""References as protocols make them: taps, features, flips, codec and resolution."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evaluation import __main__ as cli
from evaluation.arguments import parse
from evaluation.detectors.inception import FidInception
from evaluation.image_sets.image_set import open_images
from evaluation.protocols import PROTOCOLS, find_protocol
from evaluation.reference.prepared import Preparation, PreparedImages, prepare_images
from evaluation.reference.statistics_file import read_reference
from evaluation.request import new_reference_of
from tests.evaluation.test_commands import write_images


def test_images_are_flipped_by_index_and_pass_through_the_codec(tmp_path: Path) -> None:
    images = open_images(write_images(tmp_path / "images", 40))
    plain = images.batch(range(40))
    flipped = prepare_images(images, Preparation(hflip=True))
    given = flipped.batch(range(40))
    turned = [torch.equal(a, b.flip(-1)) for a, b in zip(given, plain, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(given, plain, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True))
    assert 10 < sum(turned) < 30
    again = torch.cat([*flipped.batches([range(3, 7), [39]])])
    assert torch.equal(again, given[[3, 4, 5, 6, 39]])
    lossy = prepare_images(images, Preparation(codec="jpeg"))
    assert not torch.equal(lossy.batch([0]), plain[:1])
    digests = {s.identity["digest"] for s in (images, flipped, lossy)}
    assert len(digests) == 3
    assert lossy.identity["codecs"] == ["jpeg"]
    assert prepare_images(images, Preparation()) is images


@pytest.mark.parametrize("name", PROTOCOLS)
def test_preparations_are_those_that_protocols_state(name: str) -> None:
    protocol = find_protocol(name)
    is_lossy = name.startswith("wavediff") and not name.endswith(("_recall", "_clean"))
    expected = Preparation(hflip=True, codec="jpeg") if is_lossy else Preparation()
    assert protocol.preparation == expected
    assert protocol.reference_taps[0] == protocol.metrics[0].partition(":")[2]
    assert not any(tap.startswith("logits") for tap in protocol.reference_taps)


def test_a_protocols_reference_deviates_in_nothing_that_it_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    tensors = FidInception().state_dict()
    weights = tmp_path / "inception.safetensors"
    save_file({k: v for k, v in tensors.items() if v.is_floating_point()}, weights)
    images, reference = write_images(tmp_path / "images", 4), tmp_path / "reference.npz"
    options = ["--protocol", "wavediff_cifar10", "--weights", str(weights)]
    assert cli.main(["reference", str(images), str(reference), *options]) == 0
    assert cli.main(["reference", str(images), str(reference), *options]) == 0
    assert "reused, 4 images" in capsys.readouterr().out
    made = read_reference(reference)
    assert made.meta["detector"]["name"] == "inception"
    assert made.meta["detector"]["pipeline"] == "pytorch_fid"
    assert [*made.gaussians] == ["pool"]
    assert (made.meta["flipped"], made.meta["images"]["codecs"]) == (True, ["jpeg"])
    out = tmp_path / "result.json"
    command = ["run", str(images), "--reference", str(reference), "--out", str(out), *options]
    assert cli.main(command) == 0
    deviations = "\n".join(json.loads(out.read_text())["protocol"]["deviations"])
    assert "images of the reference is 4, not 50000" in deviations
    for decided in ("codec of the reference is", "hflip of the reference is", "preprocessing is"):
        assert decided not in deviations
    plain = ["--detector", "inception", "--pipeline", "pytorch_fid", "--taps", "pool", *options[2:]]
    assert cli.main(["reference", str(images), str(reference), *plain]) == 2
    assert "exists and was made from other images" in capsys.readouterr().err


def test_images_of_another_resolution_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 2, size=16)
    command = ["reference", str(images), str(tmp_path / "r.npz"), "--protocol"]
    assert cli.main([*command, "wavediff_cifar10"]) == 2
    assert "images of 16 pixels, but wavediff_cifar10 is of 32" in capsys.readouterr().err
    assert cli.main([*command, "wavediff_cifar"]) == 2
    assert "protocol 'wavediff_cifar' is not one of" in capsys.readouterr().err


def test_the_number_of_features_is_the_protocols(tmp_path: Path) -> None:
    for options, number in (([], 30_000), (["--features", "7"], 7)):
        command = ["reference", str(tmp_path), "r.npz", "--protocol", "rdm_celebahq256", *options]
        assert new_reference_of(parse(command), inputs=False).settings.num_features == number


def test_prepared_images_keep_names_and_classes(tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "batch.npz", arr_0=images, arr_1=np.array([2, 0, 1]))
    prepared = PreparedImages(open_images(tmp_path / "batch.npz"), Preparation(hflip=True))
    assert (len(prepared), prepared.name(1), prepared.manifest) == (3, "arr_0[1]", None)
    labels = prepared.labels([0, 2])
    assert labels is not None
    assert labels.tolist() == [2, 1]
