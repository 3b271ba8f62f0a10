"""Every command of docs/reproduce.md runs, in order, on stand-ins of the official layouts."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import relaywave
from evaluation.detectors.inception import FidInception
from models.rdm.unet import UNet, UNetConfig
from models.wavediff import presets
from tests.evaluation.test_commands import write_images
from tests.models.convert.test_rdm import official_module, write_official
from tests.paths import ROOT

__all__ = ["official_module"]  # a fixture
TEXT = (ROOT / "docs/reproduce.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) for line in block.splitlines()
]
SMALL = ["--seeds", "0-3", "--batch-size", "4"]
FEW_STEPS = [
    "stage1:sampling.steps=3", "stage1:unet.compute_dtype=float32",
    "sampling.steps=20", "unet.compute_dtype=float32",
]  # fmt: skip


def write_rdm(path: Path, resolution: int, labels: int) -> None:
    sizes = {"model_channels": 8, "channel_mult": (1, 1), "num_blocks": 1, "attn_resolutions": ()}
    config = UNetConfig(resolution=resolution, label_dim=labels, **sizes)  # type: ignore[arg-type]
    weights = {f"model.{name}": weight for name, weight in UNet(config).state_dict().items()}
    write_official(
        path, weights, img_resolution=resolution, label_dim=labels, augment_dim=0,
        label_dropout=0.1 if labels else 0.0, **sizes,
    )  # fmt: skip


def write_stand_ins(root: Path) -> None:
    """Write small files of the layouts that the page names, and a list of weights."""
    torch.manual_seed(0)
    official = root / "official"
    (official / "cifar10").mkdir(parents=True)
    write_rdm(official / "edm-imagenet-64x64-cond-adm.pkl", 64, 4)
    write_rdm(official / "rdm-imagenet256.pt", 256, 4)
    write_rdm(official / "rdm-celebahq64.pt", 64, 0)
    write_rdm(official / "rdm-celebahq256.pt", 256, 0)
    generator = presets.wavediff_cifar10().build().build_networks()["generator"].state_dict()
    netg = official / "cifar10" / "netG_1300.pth"
    torch.save({f"module.{name}": weight for name, weight in generator.items()}, netg)
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    np.save(official / "cifar10_train_stat.npy", statistics)  # type: ignore[arg-type]
    write_images(root / "data" / "celebahq256", 4, size=256)
    images = write_images(root / "images", 4, size=256)
    shutil.make_archive(str(root / "data" / "imagenet256"), "zip", images)
    inception = {k: v for k, v in FidInception().state_dict().items() if v.is_floating_point()}
    save_file(inception, root / "inception.safetensors")
    (root / "weights.toml").write_text('inception = "inception.safetensors"\n')


@pytest.mark.slow
@pytest.mark.usefixtures("official_module")
def test_the_walks_lead_from_official_files_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RELAYWAVE_WEIGHTS", str(tmp_path / "weights.toml"))
    write_stand_ins(tmp_path)
    assert len(COMMANDS) == 12
    for line in COMMANDS:
        command, *arguments = shlex.split(line)
        assert command == "relaywave"
        if arguments[:2] == ["eval", "run"]:
            arguments += SMALL + (FEW_STEPS if "rdm" in line else [])
        assert relaywave.main(arguments) == 0, f"{line}\n{capsys.readouterr().err}"
    results = {path.stem: json.loads(path.read_text()) for path in Path("results").glob("*.json")}
    assert [*sorted(results)] == ["rdm_celebahq256", "rdm_imagenet256", "wavediff_cifar10"]
    main = {"rdm_imagenet256": 1.87, "rdm_celebahq256": 3.15, "wavediff_cifar10": 4.01}
    for name, fid in main.items():
        protocol = results[name]["protocol"]
        assert protocol["published"]["fid.distance"] == fid
        assert not any("guidance" in text or "eta" in text for text in protocol["deviations"])
    shown = capsys.readouterr().out
    assert all(str(fid) in shown for fid in main.values())
