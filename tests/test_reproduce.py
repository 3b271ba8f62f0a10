"""Every command of docs/reproduce.md runs, in order, on stand-ins of the official layouts."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import relaywave
from evaluation.detectors.inception import FidInception
from models.rdm.unet import UNet, UNetConfig
from models.wavediff.config import WaveDiffConfig
from models.wavediff.presets import PRESETS
from tests.evaluation.test_commands import write_images
from tests.models.convert.test_rdm import official_module, write_official
from tests.paths import ROOT

__all__ = ["official_module"]  # a fixture
TEXT = (ROOT / "docs/reproduce.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) for line in block.splitlines()
]
PATIENCE = 240.0
SMALL = ["--seeds", "0-3", "--batch-size", "4"]
WAVEDIFF = {
    # data set: (preset, epoch of the published value, FID, recall)
    "cifar10": ("wavediff_cifar10", 1300, 4.01, 0.55),
    "stl10": ("wavediff_stl10", 600, 12.93, 0.41),
    "celebahq256": ("wavediff_celebahq256", 475, 5.94, 0.37),
    "celebahq512": ("wavediff_celebahq512", 350, 6.40, 0.35),
    "celebahq1024": ("wavediff_celebahq1024", 350, 5.98, 0.39),
    "lsun_church": ("wavediff_lsun_church256", 400, 5.06, 0.40),
}
RDM = {"rdm_imagenet256": 1.87, "rdm_celebahq256": 3.15}
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


def narrow(preset: str) -> WaveDiffConfig:
    """Return a preset with networks of the same layers and names, but of few channels."""
    config = PRESETS[preset]()
    return replace(config, generator=replace(config.generator, base_channels=8))


def write_wavediff(path: Path, config: WaveDiffConfig) -> None:
    path.parent.mkdir(parents=True)
    weights = config.build().build_networks()["generator"].state_dict()
    torch.save({f"module.{name}": weight for name, weight in weights.items()}, path)


class Features(torch.nn.Module):
    """What StyleGAN's vgg16.pt answers: features only."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        return img.float().mean((2, 3)) if return_features else img.float()


def write_stand_ins(root: Path) -> None:
    """Write small files of the layouts that the page names, and a list of weights."""
    torch.manual_seed(0)
    official = root / "official"
    official.mkdir()
    write_rdm(official / "edm-imagenet-64x64-cond-adm.pkl", 64, 4)
    write_rdm(official / "rdm-imagenet256.pt", 256, 4)
    write_rdm(official / "rdm-celebahq64.pt", 64, 0)
    write_rdm(official / "rdm-celebahq256.pt", 256, 0)
    for name, (preset, epoch, _, _) in WAVEDIFF.items():
        config = PRESETS[preset]()
        write_wavediff(official / name / f"netG_{epoch}.pth", config)
        write_images(root / "data" / name, 4, size=config.resolution)
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    np.save(official / "cifar10_train_stat.npy", statistics)  # type: ignore[arg-type]
    images = write_images(root / "images", 4, size=256)
    shutil.make_archive(str(root / "data" / "imagenet256"), "zip", images)
    inception = {k: v for k, v in FidInception().state_dict().items() if v.is_floating_point()}
    save_file(inception, root / "inception.safetensors")
    torch.jit.script(Features()).save(root / "vgg16.pt")
    named = 'inception = "inception.safetensors"\nvgg16 = "vgg16.pt"\n'
    (root / "weights.toml").write_text(named)


def check_slurm(arguments: list[str], shown: str) -> None:
    """Check that the batch script of a command runs what it asks for on its nodes and GPUs."""
    nodes, gpus = (arguments[arguments.index(o) + 1] for o in ("--nodes", "--gpus-per-node"))
    assert f"#SBATCH --nodes={nodes}\n" in shown
    assert f"#SBATCH --gpus-per-node={gpus}\n" in shown
    assert f"#SBATCH --ntasks-per-node={gpus}\n" in shown


def run_locally(arguments: list[str]) -> Path:
    """Run a command of `relaywave slurm` on this machine, without GPUs; return its new result."""
    out = Path(arguments[arguments.index("--out") + 1])
    out = out.with_stem(f"{out.stem}_by_a_job")
    options = [
        "--cluster",
        "local",
        "--nodes",
        "1",
        "--gpus-per-node",
        "0",
        "--tasks-per-node",
        "1",
    ]
    assert relaywave.main([*arguments, *options, "--out", str(out)]) == 0
    deadline = time.monotonic() + PATIENCE
    while not out.exists() or not json.loads(out.read_text())["metrics"]:
        assert time.monotonic() < deadline, [*out.parent.rglob("*.err")]
        time.sleep(0.2)
    return out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.usefixtures("official_module")
def test_the_walks_lead_from_official_files_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RELAYWAVE_WEIGHTS", str(tmp_path / "weights.toml"))
    for preset, *_ in WAVEDIFF.values():
        monkeypatch.setitem(PRESETS, preset, functools.partial(lambda c: c, narrow(preset)))
    write_stand_ins(tmp_path)
    by_job = None
    for line in COMMANDS:
        command, *arguments = shlex.split(line)
        assert command == "relaywave"
        if arguments[:2] in (["eval", "run"], ["slurm", "eval"]):
            arguments += SMALL + (FEW_STEPS if "rdm" in line else [])
        if line.startswith("relaywave slurm") and "wavediff_cifar10.json" in line:
            by_job = run_locally(arguments)
        capsys.readouterr()
        dry = ["--dry-run"] if line.startswith("relaywave slurm") else []
        assert relaywave.main(arguments + dry) == 0, f"{line}\n{capsys.readouterr().err}"
        shown = capsys.readouterr().out
        if dry:
            check_slurm(arguments, shown)
    results = {path.stem: json.loads(path.read_text()) for path in Path("results").glob("*.json")}
    published = {name: ("fid.distance", fid) for name, fid in RDM.items()}
    for name, (_, _, fid, recall) in WAVEDIFF.items():
        published[f"wavediff_{name}"] = ("fid.distance", fid)
        published[f"wavediff_{name}_recall"] = ("pr_vgg16_stylegan.recall", recall)
    assert by_job is not None
    same = results.pop(by_job.stem)
    assert same["metrics"].keys() == results["wavediff_cifar10"]["metrics"].keys()
    assert same["identity"] == results["wavediff_cifar10"]["identity"]
    assert results.keys() == published.keys()
    for name, (value, number) in published.items():
        protocol = results[name]["protocol"]
        assert protocol["published"][value] == number
        of_model = [text.partition(" is ")[0] for text in protocol["deviations"]]
        assert not {"guidance", "eta", "sampler", "resolution", "preprocessing"} & {*of_model}
        assert f"{number:g}" in shown
