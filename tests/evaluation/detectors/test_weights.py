"""One list of weights files: who reads it, what errors say, and what `weights` shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation import __main__ as cli
from evaluation.detectors import inception_weights, registry
from evaluation.detectors.base import DetectorConfig, weights_digest
from evaluation.detectors.inception import FidInception
from evaluation.detectors.registry import DETECTORS
from evaluation.detectors.weights import DOWNLOADS, find_weights
from evaluation.protocols import PROTOCOLS
from models.config_io import ConfigError


@pytest.fixture
def config_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of the user's files, which is empty."""
    monkeypatch.delenv("RELAYWAVE_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    home = tmp_path / "config" / "relaywave"
    home.mkdir(parents=True)
    return home


NEED_FILES = [name for name in DETECTORS if name != "effnet_lite0"]


def test_every_detector_without_a_wheel_is_listed() -> None:
    assert [*DOWNLOADS] == NEED_FILES
    assert {p.detector for p in PROTOCOLS.values()} <= DOWNLOADS.keys()


@pytest.mark.parametrize("name", NEED_FILES)
def test_the_list_is_used_where_no_option_names_a_file(config_home: Path, name: str) -> None:
    (config_home / "w.pt").touch()
    (config_home / "weights.toml").write_text(f'{name} = "w.pt"\n')
    assert DetectorConfig(name).weights_path() == config_home / "w.pt"
    assert DetectorConfig(name, "other.pt").weights_path() == Path("other.pt")


def test_the_list_may_be_elsewhere(
    config_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config_home / "weights.toml").write_text('vgg16 = "theirs.pt"\n')
    (tmp_path / "vgg16.pt").touch()
    (tmp_path / "mine.toml").write_text(f'vgg16 = "{tmp_path}/vgg16.pt"\n')
    monkeypatch.setenv("RELAYWAVE_WEIGHTS", str(tmp_path / "mine.toml"))
    assert find_weights("vgg16") == tmp_path / "vgg16.pt"
    monkeypatch.setenv("RELAYWAVE_WEIGHTS", str(tmp_path / "no.toml"))
    with pytest.raises(ConfigError, match=r"no\.toml cannot be read as a list of weights files"):
        find_weights("vgg16")
    monkeypatch.delenv("RELAYWAVE_WEIGHTS")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError, match=rf"{tmp_path}/home/\.config/relaywave/weights\.toml"):
        find_weights("vgg16")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r'give --weights FILE, or name it in .*/weights.toml \(clip = "FILE"\)'),
        ('vgg16 = "w.pt"\n', "the clip detector needs its weights file"),
        ('clip = "gone.pt"\n', r"names .*/gone\.pt for clip, which does not exist"),
        ('clipp = "w.pt"\n', r"'clipp' is no detector that needs weights; .* did you mean clip"),
        ("effnet_lite0 = 'w'\n", "'effnet_lite0' is no detector that needs weights"),
        ("clip = 1\n", r"weights\.toml\.clip=1 is not of type str"),
        ("clip = ''\n", "clip='' is no path"),
        ("clip = \n", "cannot be read as a list of weights files"),
    ],
)
def test_errors_name_the_list(config_home: Path, text: str, message: str) -> None:
    (config_home / "weights.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_weights("clip")


def test_commands_without_weights_point_to_the_list(
    config_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images.npz"
    np.savez(images, arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    assert cli.main(["reference", str(images), "r.npz", "--detector", "dinov2"]) == 2
    error = capsys.readouterr().err
    assert f"name it in {config_home}/weights.toml" in error
    assert "`relaywave eval weights` says where to get it" in error


def test_weights_says_what_is_needed_and_whether_it_is_there(
    config_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["weights"]) == 0
    shown = capsys.readouterr().out
    assert f"{config_home}/weights.toml: no weights files are named" in shown
    for protocol in PROTOCOLS:
        assert protocol in shown
    for downloads in DOWNLOADS.values():
        assert all(download.url in shown for download in downloads)
    assert "(sha256 6726825d0af5f729" in shown
    file = config_home / "inception.pth"
    torch.save(FidInception().state_dict(), file)
    (config_home / "vgg16.pt").write_bytes(b"cut off")
    named = 'inception = "inception.pth"\nclip = "gone.pt"\nvgg16 = "vgg16.pt"\n'
    (config_home / "weights.toml").write_text(named)
    assert cli.main(["weights"]) == 0
    shown = capsys.readouterr().out
    digest = weights_digest(file, None)
    assert f"inception.pth has sha256 {digest}, expected 6726825d" in shown
    assert "gone.pt for clip, which does not exist" in shown
    assert "vgg16.pt cannot be read as a TorchScript detector" in shown
    assert shown.count("    not named\n") == 2
    monkeypatch.setattr(inception_weights, "PUBLIC_SHA256", digest)
    monkeypatch.setattr(registry, "PUBLIC_SHA256", digest)
    assert cli.main(["weights"]) == 0
    assert f"{file}: complete, the published weights" in capsys.readouterr().out
