"""Figure 2: at equal level, block noise at 256 has the spectrum of iid noise at 64."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn

from models.__main__ import main
from models.analysis.spectrum import Spectra, compute_spectra, radial_power
from models.command_line import EXIT_STORAGE
from tests.flaky_files import make_flaky

LOW = slice(1, 24)  # the lowest third of the small image's band


@pytest.fixture(scope="module")
def spectra() -> Spectra:
    images = torch.zeros(12, 3, 256, 256)
    return compute_spectra([images], 4, 0.5, torch.Generator().manual_seed(0))


def test_block_noise_matches_low_resolution_noise_at_low_frequencies(spectra: Spectra) -> None:
    ratio = spectra.block_large[LOW].sum() / spectra.iid_small[LOW].sum()
    assert float(ratio) == pytest.approx(1.0, abs=0.04)
    each = spectra.block_large[LOW] / spectra.iid_small[LOW]
    assert float((each - 1).abs().max()) < 0.3


def test_iid_noise_has_a_sixteenth_of_its_power(spectra: Spectra) -> None:
    ratio = spectra.iid_large[LOW].sum() / spectra.iid_small[LOW].sum()
    assert float(ratio) == pytest.approx(1 / 16, rel=0.08)
    assert float(spectra.iid_large.mean()) == pytest.approx(0.25, rel=0.02)


def test_radial_power_is_that_of_scipys_transform() -> None:
    image = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    power = np.mean([dctn(x[0].numpy(), norm="ortho") ** 2 for x in image], axis=0)
    radius = np.rint(np.hypot(*np.indices((8, 8)))).astype(int)
    expected = [power[radius == r].mean() for r in range(8)]
    assert np.allclose(radial_power(image).numpy(), expected)


def test_command_writes_plots_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(pictures / "a.png")
    Image.fromarray(pixels[:8, :8]).save(pictures / "small.png")
    (pictures / "broken.jpg").write_bytes(b"not a picture")
    arguments = ["spectrum", str(pictures), str(tmp_path / "out"), "--resolution", "32"]
    assert main(arguments) == 0
    with open(tmp_path / "out" / "spectrum.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 32
    assert float(rows[2]["cycles_per_image"]) == 1.0
    assert float(rows[3]["snr_block_large"]) > 0
    with Image.open(tmp_path / "out" / "spectrum.png") as picture:
        assert picture.width > picture.height
    svg = (tmp_path / "out" / "spectrum.svg").read_text()
    assert "block noise, 32 px" in svg
    assert "matplotlib.pyplot" not in sys.modules, "no global state of matplotlib is touched"
    assert main(arguments) == 0, "the same again"
    capsys.readouterr()
    for name in ("spectrum.csv", "spectrum.png", "spectrum.svg"):
        (tmp_path / "out" / name).write_bytes(b"notes")
        assert main(arguments) == 2
        assert f"{name} is not" in capsys.readouterr().err
        assert (tmp_path / "out" / name).read_bytes() == b"notes"
        (tmp_path / "out" / name).unlink()


def test_an_image_that_cannot_be_read_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, image in zip("ab", pixels, strict=True):
        Image.fromarray(image).save(pictures / f"{name}.png")
    command = ["spectrum", str(pictures), str(tmp_path / "out"), "--resolution", "16"]
    table = tmp_path / "out/spectrum.csv"
    assert main(command) == 0
    before = table.read_text()
    with monkeypatch.context() as patch:
        assert make_flaky(patch, lambda path: path.name == "a.png", 3) == {}
        assert main(command) == 0
    assert table.read_text() == before
    with monkeypatch.context() as patch:
        make_flaky(patch, lambda path: path.name == "a.png", 10**6)
        assert main(command) == EXIT_STORAGE
    assert "a.png" in capsys.readouterr().err


def test_command_without_matplotlib_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["spectrum", str(tmp_path), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "error: plots need matplotlib; pip install 'relaywave[plots]'\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{path}/missing"], "is not a directory of images"),
        (["{path}"], "holds no image of at least 256x256 pixels"),
        (["{path}", "--sigma", "0"], "sigma=0.0 must be positive"),
        (["{path}", "--resolution", "6", "--upscale", "4"], "at least twice"),
    ],
)
def test_command_rejects_bad_input_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, *options = (argument.format(path=tmp_path) for argument in arguments)
    assert main(["spectrum", images, str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
