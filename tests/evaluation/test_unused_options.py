"""Options without effect are rejected: what is accepted is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.__main__ import main as data
from evaluation.__main__ import main
from slurm.__main__ import main as slurm
from tests.evaluation.features.test_reuse import write_images
from tests.fuzz.subjects.models import make_snapshot


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, images, and statistics of them."""
    root = tmp_path_factory.mktemp("inputs")
    make_snapshot(root / "model", 0)
    write_images(root / "images", 6)
    assert main(["reference", f"{root}/images", f"{root}/ref.npz", "--taps", "block4"]) == 0
    return root


DRAWN = "has no effect: the images are there already, and none are drawn; leave it out"
OF_IMAGES = {
    "--seeds 0-9": DRAWN, "--labels random": DRAWN, "--quantisation adm": DRAWN,
    "--retouch rdm_celebahq": DRAWN, "--codec jpeg": DRAWN, "--keep-images kept": DRAWN,
    "--shard-images 2": DRAWN,
    "--grid-upscale 2": "has no effect: no grid is drawn without --grid FILE",
    "--grid-images 9": "has no effect: no grid is drawn without --grid FILE",
    "--bootstrap 9 --metrics cmmd:block4": "--bootstrap has no effect: only fd, is, kid, pr, prdc",
    "--features 4": "ref.npz has the features that it has",
}  # fmt: skip


@pytest.mark.parametrize("options", OF_IMAGES)
def test_evaluations_of_images(
    inputs: Path, tmp_path: Path, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.json"
    command = [str(inputs / "images"), "--reference", str(inputs / "ref.npz")]
    given = options.split()
    for run in (
        lambda: main(["run", *command, "--out", str(out), *given]),
        lambda: slurm(["eval", *command, "--out", str(out), "--dry-run", *given]),
    ):
        assert run() == 2
        error = capsys.readouterr().err
        assert OF_IMAGES[options] in error
        assert error.count("\n") == 1
    assert not out.exists()


OF_SAMPLES = {
    "--grid-images 9": "has no effect: no grid is drawn without --grid FILE",
    "--grid-upscale 3": "has no effect: no grid is drawn without --grid FILE",
}


@pytest.mark.parametrize("options", OF_SAMPLES)
def test_samples(
    inputs: Path, tmp_path: Path, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", str(inputs / "model"), "--out", str(tmp_path / "out")]
    assert main([*command, *options.split()]) == 2
    assert OF_SAMPLES[options] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_as_a_reference_take_no_preprocessing_of_files(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = str(inputs / "images"), str(tmp_path / "r.json")
    options = ["--reference-pipeline", "half_pixel224"]
    assert main(["run", images, "--reference", images, "--out", out, *options]) == 2
    assert "--reference-pipeline has no effect" in capsys.readouterr().err


OF_PACKS = {
    "--quality 80": "--quality has no effect: only images that are stored as JPEG",
    "--quality 80 --format webp": "--quality has no effect: only images that are stored as JPEG",
    "--shard 0/2 --finish": "--shard writes a share, --finish joins all of them",
    "--ground-truth {root}/ref.npz": "images does not take --ground-truth; leave it out",
    "--classes {root}/ref.npz": "images does not take --classes; leave it out",
    "--image-column image": "images does not take --image-column; leave it out",
}


@pytest.mark.parametrize("options", OF_PACKS)
def test_packs(
    inputs: Path, tmp_path: Path, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["images", str(inputs / "images"), str(tmp_path / "set"), "--resolution", "16"]
    given = options.format(root=inputs).split()
    assert data(["pack", *command, *given]) == 2
    assert OF_PACKS[options] in capsys.readouterr().err
    if "--shard" not in options:
        assert slurm(["pack", *command, "--dry-run", *given]) == 2
        assert OF_PACKS[options] in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
