"""Snapshots, and official checkpoints of RDM and WaveDiff."""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path
from typing import Any

import torch

from models.__main__ import main
from models.rdm.config import EdmConfig
from models.rdm.unet import UNet, UNetConfig
from models.snapshot import read_snapshot, write_snapshot
from tests.fuzz.subject import Difference, Result, Subject, as_a_command, digest, run
from tests.models.convert import test_rdm, test_wavediff


def make_snapshot(path: Path, number: int) -> None:
    unet = UNetConfig(
        resolution=8, model_channels=4, channel_mult=(1 + number,), num_blocks=1, label_dim=2
    )
    objective = EdmConfig(unet=unet)
    torch.manual_seed(number)
    write_snapshot(
        path,
        objective.build().build_networks()["denoiser"].state_dict(),
        objective=objective,
        network="denoiser",
        images_seen=500 + number,
        ema="halflife 500 images",
        provenance={"run": f"run{number}", "class_names": ["cat", "dog"]},
    )


def load(tree: Path) -> Result:
    """Return a snapshot's description and weights, as samplers get them."""
    with as_a_command():
        snapshot = read_snapshot(tree)
        network = snapshot.load_network()
    described = {name: digest(value) for name, value in vars(snapshot).items()}
    return described | _weights(network.state_dict())


def _weights(state: dict[str, Any]) -> dict[str, str]:
    return {name: digest(weight.contiguous().numpy().tobytes()) for name, weight in state.items()}


def make_rdm(path: Path, number: int) -> None:
    """Write an official snapshot and an official training state."""
    _name_the_official_module()
    path.mkdir()
    torch.manual_seed(number)
    config = UNetConfig(
        resolution=8,
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        label_dim=4,
        augment_dim=9,
    )
    weights = {f"model.{name}": weight for name, weight in UNet(config).state_dict().items()}
    for name in ("snapshot.pkl", "state.pt"):
        test_rdm.write_official(path / name, weights)


def _name_the_official_module() -> None:
    """Let the writer name the official constructor; see tests/models/convert/test_rdm.py."""
    fake: Any = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: object) -> None: ...

    _reconstruct_persistent_obj.__module__ = fake.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    fake._reconstruct_persistent_obj = _reconstruct_persistent_obj
    sys.modules |= {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": fake}


def convert_pkl(tree: Path) -> Result:
    return _convert(tree, "rdm-official", tree / "snapshot.pkl", "--images-seen", "5")


def convert_pt(tree: Path) -> Result:
    return _convert(tree, "rdm-official", tree / "state.pt")


def make_wavediff(path: Path, number: int) -> None:
    """Write an official generator, and an official training state."""
    path.mkdir()
    weights = test_wavediff.official_weights(number)
    torch.save(weights, path / "netG_7.pth")
    states = {
        index: {"step": 3, "exp_avg": weight, "exp_avg_sq": weight, "ema": weight + 1}
        for index, weight in enumerate(weights.values())
    }
    document = {
        "epoch": 5, "global_step": 30, "args": argparse.Namespace(**test_wavediff.ARGUMENTS),
        "netG_dict": weights, "netD_dict": {}, "optimizerG": {"state": states, "param_groups": []},
        "optimizerD": {},
    }  # fmt: skip
    torch.save(document, path / "content.pth")


def convert_netg(tree: Path) -> Result:
    settings = ("diffusion.steps=2", "space.band_order=LL_HL_LH_HH")
    return _convert(tree, "wavediff-official", tree / "netG_7.pth", "--resolution", "16", *settings)


def convert_content(tree: Path) -> Result:
    return _convert(tree, "wavediff-official", tree / "content.pth")


def _convert(tree: Path, kind: str, source: Path, *options: str) -> Result:
    out = tree.parent / "out"
    run(main, "convert", kind, source, out, *options)
    snapshot = read_snapshot(out)
    described = {
        name: digest(getattr(snapshot, name)) for name in ("objective", "images_seen", "ema")
    }
    return described | _weights(snapshot.load_weights())


def values_alone_differ(difference: Difference) -> bool:
    """Official files have no checksums: a byte of a weight or of a number is what it is.

    But the tensors are the same ones: none is missing, renamed or of another place.
    """
    return difference.before.keys() == difference.after.keys()


SUBJECTS = (
    Subject("models.snapshot", make_snapshot, load),
    Subject("models.rdm.pkl", make_rdm, convert_pkl, ("snapshot.pkl",), values_alone_differ),
    Subject("models.rdm.pt", make_rdm, convert_pt, ("state.pt",), values_alone_differ),
    Subject(
        "models.wavediff.netg", make_wavediff, convert_netg, ("netG_7.pth",), values_alone_differ
    ),
    Subject(
        "models.wavediff.content",
        make_wavediff,
        convert_content,
        ("content.pth",),
        values_alone_differ,
    ),
)
