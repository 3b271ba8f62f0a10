"""Official files that are damaged, of wrong types, or meant to use up memory or time."""

from __future__ import annotations

import argparse
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.__main__ import main
from models.convert.pickle_reader import (
    NUMPY_GLOBALS,
    PickleReadError,
    read_pickle,
    read_pickled_npy,
)
from tests.models.convert import test_rdm
from tests.models.convert.test_rdm import ARGUMENTS, Persistent, official_module, weights
from tests.paths import ROOT

__all__ = ["official_module", "weights"]  # fixtures

pytestmark = pytest.mark.usefixtures("official_module")
Convert = Callable[..., str]


@pytest.fixture
def convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Convert:
    """Return a function that converts a file, and expects one line that rejects it."""

    def run(path: Path, kind: str = "rdm-official", *options: str) -> str:
        begin = time.monotonic()
        assert main(["convert", kind, str(path), str(tmp_path / "out"), *options]) == 2
        assert time.monotonic() - begin < 10
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert str(path) in error
        assert len(error) < 1500
        assert not (tmp_path / "out").exists()
        return error

    return run


def wrapper(**attributes: Any) -> Persistent:
    whole = {"_parameters": {}, "_modules": {}, "_init_kwargs": ARGUMENTS} | attributes
    return Persistent("EDMPrecond", whole)


def written(path: Path, ema: object, **others: object) -> Path:
    path.write_bytes(pickle.dumps({"ema": ema, "step": 5} | others))
    return path


@pytest.mark.parametrize("size", ["data.pkl", "data/0"])
def test_zip_bombs_do_not_expand(tmp_path: Path, size: str) -> None:
    """2.5 MB that would become 2.5 GB, within 1.2 GB of memory."""
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/version", "3\n")
        with archive.open(f"archive/{size}", "w", force_zip64=True) as member:
            for _ in range(2500):
                member.write(bytes(1 << 20))
    out = str(tmp_path / "out")
    code = f"""import resource, models.__main__ as m
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for kind in ("rdm-official", "wavediff-official"):
    assert m.main(["convert", kind, {str(tmp_path / "bomb.pt")!r}, {out!r}]) == 2
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is compressed, which PyTorch never does") == 2
    assert int(done.stdout) < 200_000, "kB"


def nested(levels: int, times: int) -> Persistent:
    inner = wrapper()
    for _ in range(levels):
        children = {f"child{number}": inner for number in range(times)}
        inner = wrapper(_modules=children)
    return inner


@pytest.mark.parametrize(("levels", "times"), [(28, 2), (12, 8), (60, 1)])
def test_shared_and_deep_modules_end(
    tmp_path: Path, convert: Convert, levels: int, times: int
) -> None:
    error = convert(written(tmp_path / "deep.pkl", nested(levels, times)))
    assert "it holds more than" in error or "it is nested more than" in error


def test_shared_arguments_end(tmp_path: Path, convert: Convert) -> None:
    value: Any = [1]
    for _ in range(28):
        value = [value, value]
    for name in ("img_resolution", "anything"):
        kwargs = ARGUMENTS | {name: value}
        assert "it holds more than" in convert(
            written(tmp_path / "deep.pkl", wrapper(_init_kwargs=kwargs))
        )


WRONG = ([1], {}, None, "x", -1, 10**9, 1e300, float("nan"), b"x", np.zeros(3), (1, "x"))
NUMBERS = {*ARGUMENTS, "label_dropout"} - {"model_type", "use_fp16"}


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_arguments_of_wrong_types_are_named(tmp_path: Path, convert: Convert, name: str) -> None:
    wrong = WRONG[1:] if name in ("channel_mult", "attn_resolutions") else WRONG
    for value in wrong:
        kwargs = ARGUMENTS | {name: value}
        assert name in convert(written(tmp_path / "wrong.pkl", wrapper(_init_kwargs=kwargs)))


def test_odd_switches_are_one_line(tmp_path: Path, convert: Convert) -> None:
    for name in ("model_type", "use_fp16"):
        for value in WRONG:
            kwargs = ARGUMENTS | {name: value}
            convert(written(tmp_path / "wrong.pkl", wrapper(_init_kwargs=kwargs)))


@pytest.mark.parametrize(
    "attributes",
    [
        {"_parameters": [1]}, {"_modules": 3}, {"_buffers": "x"}, {"_init_kwargs": [1]},
        {"_init_kwargs": {}}, {"_modules": {"a\nb": 3}}, {"_parameters": {"x\ny": torch.zeros(2)}},
        {"_parameters": {3: torch.zeros(2)}},
    ],
    ids=str,
)  # fmt: skip
def test_odd_modules_are_one_line(
    tmp_path: Path, convert: Convert, attributes: dict[str, Any]
) -> None:
    convert(written(tmp_path / "odd.pkl", wrapper(**attributes)))


@pytest.mark.parametrize("step", ["many", [], -1, 10**40, 1.5, True, {}])
def test_odd_steps_are_one_line(
    tmp_path: Path, convert: Convert, step: object, weights: dict[str, Tensor]
) -> None:
    ema = test_rdm.module("EDMPrecond", weights, _init_args=(), _init_kwargs=ARGUMENTS)
    assert "step" in convert(written(tmp_path / "step.pkl", ema, step=step))


def test_flipped_bits_are_one_line_or_the_same_weights(
    tmp_path: Path, weights: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    for name in ("state.pt", "snapshot.pkl"):
        content = test_rdm.write_official(tmp_path / name, weights).read_bytes()
        for _ in range(40):
            changed = bytearray(content)
            for _ in range(rng.choice([1, 3, 50])):
                changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            (tmp_path / name).write_bytes(changed)
            out = str(tmp_path / "out")
            begin = time.monotonic()
            code = main(
                ["convert", "rdm-official", str(tmp_path / name), out, "--images-seen", "1"]
            )
            assert time.monotonic() - begin < 10
            error = capsys.readouterr().err
            assert code == 0 or (code == 2 and error.count("\n") == 1), error


CONTENT = {
    "image_size": 8, "num_channels": 3, "num_channels_dae": 8, "ch_mult": [1, 2],
    "num_res_blocks": 1, "attn_resolutions": [], "nz": 4, "z_emb_dim": 8, "n_mlp": 1,
    "dataset": "cifar10", "ngf": 8, "t_emb_dim": 8, "batch_size": 4, "num_timesteps": 4,
    "r1_gamma": 0.1, "lazy_reg": 5,
}  # fmt: skip


def content_file(path: Path, **changes: object) -> Path:
    document: dict[str, Any] = {
        "netG_dict": {"w": torch.zeros(2)}, "args": argparse.Namespace(**CONTENT), "epoch": 1,
        "global_step": 5, "optimizerG": {"state": {}},
    }  # fmt: skip
    torch.save(document | changes, path)
    return path


@pytest.mark.parametrize("name", CONTENT)
def test_wavediff_settings_of_wrong_types_are_named(
    tmp_path: Path, convert: Convert, name: str
) -> None:
    for value in ([1, "x"], {}, None, "x", -1, 10**9, 1e300, (1,) * 100):
        arguments = argparse.Namespace(**CONTENT | {name: value})
        convert(content_file(tmp_path / "content.pth", args=arguments), "wavediff-official")


def test_odd_numbers_of_images_are_one_line(tmp_path: Path, convert: Convert) -> None:
    for name in ("batch_size", "world_size"):
        for value in ("x", [], 1.5, -1, 10**30):
            arguments = argparse.Namespace(**CONTENT | {name: value})
            convert(content_file(tmp_path / "content.pth", args=arguments), "wavediff-official")
    for value in (-1, 10**30):
        convert(content_file(tmp_path / "content.pth", global_step=value), "wavediff-official")


@pytest.mark.parametrize(
    "changes",
    [
        {"args": 3}, {"args": {}}, {"epoch": "x"}, {"epoch": []}, {"global_step": None},
        {"optimizerG": 3}, {"optimizerG": {"state": [1]}}, {"optimizerG": {"state": {0: 3}}},
        {"optimizerG": {"state": {0: {"ema": 3}}}}, {"netG_dict": 3}, {"netG_dict": [1]},
        {"netG_dict": {}}, {"netG_dict": {"a": 3}}, {"netG_dict": {3: torch.zeros(2)}},
        {"netG_dict": {"a\nb": torch.zeros(2)}}, {"netG_dict": {"c": torch.zeros(2).cfloat()}},
        {"netG_dict": {"w": torch.zeros(1).expand(10**10)}},
    ],
    ids=ascii,
)  # fmt: skip
def test_odd_wavediff_files_are_one_line(
    tmp_path: Path, convert: Convert, changes: dict[str, object]
) -> None:
    convert(content_file(tmp_path / "content.pth", **changes), "wavediff-official")


@pytest.mark.parametrize(
    "names",
    [
        ["all_modules.0.weight"], ["all_modules.0.Dense_0.weight", "z_transform.1.weight"],
        [f"all_modules.{n}.Conv2d_0.weight" for n in range(3)], ["z_transform.1.weight"],
        ["all_modules.0.bias", "all_modules.1.Dense_0.x", "all_modules.2.Conv_0.y",
         "z_transform.1.weight"],
    ],
    ids=len,
)  # fmt: skip
def test_weights_of_other_networks_are_one_line(
    tmp_path: Path, convert: Convert, names: list[str]
) -> None:
    for shape in ((), (3,), (2, 2), (1, 1, 1, 1)):
        torch.save({name: torch.zeros(shape) for name in names}, tmp_path / "netG_5.pth")
        convert(tmp_path / "netG_5.pth", "wavediff-official")
        convert(tmp_path / "netG_5.pth", "wavediff-official", "--resolution", "64")


def test_out_is_checked_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").touch()
    for kind in ("rdm-official", "wavediff-official"):
        source = str(tmp_path / "nothing")
        assert main(["convert", kind, source, str(tmp_path / "thesis")]) == 2
        assert "holds other things than a snapshot (" in capsys.readouterr().err
    assert (tmp_path / "thesis/thesis.tex").exists()


def repeated(part: bytes, times: int) -> bytes:
    return part * times


PICKLES = {
    "memo": b"\x80\x02]r\xff\xff\xff\xef.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
    "copies": b"\x80\x02c_codecs\nencode\nq\x01X" + struct.pack("<I", 10**6) + b"a" * 10**6
    + b"q\x020(" + repeated(b"h\x01h\x02\x85R", 500) + b"t.",
    "digits": b"I" + b"9" * 10**6 + b"\n.",
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_take_no_memory_that_they_do_not_fill(name: str) -> None:
    code = f"""import resource, pickle
from models.convert.pickle_reader import *
from tests.models.convert.test_hostile import PICKLES
content = PICKLES[{name!r}]
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_pickle(content, NUMPY_GLOBALS)
except PickleReadError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base, error)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used, _, message = done.stdout.partition(" ")
    assert int(used) < 200_000, "kB"
    assert message.count("\n") == 1


def test_arrays_that_announce_more_than_the_file_has(tmp_path: Path) -> None:
    for shape in ((10**12,), (10**6, 10**6), (2**62, 8)):
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        magic = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header))
        (tmp_path / "big.npy").write_bytes(magic + header + bytes(80))
        with pytest.raises(PickleReadError, match="but the file only 80"):
            read_pickled_npy(tmp_path / "big.npy")


def test_large_honest_pickles_are_read() -> None:
    content = {"mu": np.zeros(2048), "sigma": np.zeros((2048, 2048)), "n": 5}
    for protocol in (2, 5):
        read = read_pickle(pickle.dumps(content, protocol), NUMPY_GLOBALS)
        assert read["sigma"].shape == (2048, 2048)
