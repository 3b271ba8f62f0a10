"""The restricted reader and the converter, on containers of both official formats made here.

The containers hold source text that would raise if it were executed, and globals that only exist
while they are written.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
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
from models.rdm.config import EdmConfig, RelayConfig
from models.rdm.presets import SAMPLERS
from models.rdm.unet import UNet, UNetConfig
from models.snapshot import read_snapshot

ARGUMENTS = {
    "model_type": "DhariwalUNet", "img_resolution": 8, "img_channels": 3, "label_dim": 4,
    "use_fp16": True, "model_channels": np.int64(8), "channel_mult": [1, 2], "num_blocks": 1,
    "attn_resolutions": [], "dropout": 0.1, "augment_dim": 9,
}  # fmt: skip


class Persistent:
    """Pickles like the official module objects: a constructor call with source text and state."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.meta = {
            "type": "class", "version": 6, "module_src": "raise RuntimeError('executed')",
            "class_name": class_name, "state": state,
        }  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        return (sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,))


def module(class_name: str, tensors: dict[str, Tensor], **attributes: object) -> Persistent:
    """Nest tensors by their dotted names into module objects."""
    parameters: OrderedDict[str, object] = OrderedDict()
    children: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            children.setdefault(first, {})[rest] = tensor
        else:
            parameters[first] = torch.nn.Parameter(tensor, tensor.is_floating_point())
    modules = OrderedDict((name, module("Part", child)) for name, child in children.items())
    return Persistent(
        class_name, {"_parameters": parameters, "_modules": modules, "training": False} | attributes
    )


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return official_weights()


def official_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    config = UNetConfig(
        resolution=8, model_channels=8, channel_mult=(1, 2), num_blocks=1, label_dim=4,
        augment_dim=9,
    )  # fmt: skip
    return {f"model.{name}": w for name, w in UNet(config).state_dict().items()}


@pytest.fixture
def official_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the writer name the official constructor for the length of a test."""
    fake = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: object) -> None:
        raise AssertionError("the reader called the official constructor")

    _reconstruct_persistent_obj.__module__ = fake.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    fake._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", fake)


def write_official(
    path: Path,
    weights: dict[str, Tensor],
    wrapper_class: str = "EDMPrecond",
    loss: Persistent | None = None,
    attributes: dict[str, object] | None = None,
    **arguments: object,
) -> Path:
    kwargs = ARGUMENTS | arguments
    wrapper = module(
        wrapper_class, weights, _init_args=(), _init_kwargs=kwargs, **(attributes or {})
    )
    if path.suffix == ".pkl":
        loss = loss or module("EDMLoss", {})
        content = {"ema": wrapper, "loss_fn": loss, "dataset_kwargs": {}}
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save({"optimizer_state": {}, "step": 123_392, "ema": wrapper, "net": wrapper}, path)
    return path


@pytest.mark.usefixtures("official_module")
@pytest.mark.parametrize("name", ["snapshot.pkl", "state.pt"])
def test_conversion_keeps_every_weight(
    name: str, weights: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_official(tmp_path / name, weights)
    command = ["convert", "rdm-official", str(source), str(tmp_path / "out")]
    command += ["--images-seen", "7"] if name.endswith("pkl") else []
    command += ["unet.compute_dtype=float32", "sampling.steps=3"]
    assert main(command) == 0
    assert "channel_mult=[1, 2]" in capsys.readouterr().out
    snapshot = read_snapshot(tmp_path / "out")
    assert snapshot.images_seen == (7 if name.endswith("pkl") else 123_392)
    assert isinstance(snapshot.objective, EdmConfig)
    assert snapshot.objective.sampling.steps == 3
    loaded = snapshot.load_network().state_dict()
    assert {f"model.{key}" for key in loaded} == set(weights)
    assert all(torch.equal(loaded[key.removeprefix("model.")], weights[key]) for key in weights)
    assert snapshot.provenance["official_arguments"]["num_blocks"] == 1


@pytest.mark.usefixtures("official_module")
def test_stage_can_be_told(weights: dict[str, Tensor], tmp_path: Path) -> None:
    source = write_official(tmp_path / "state.pt", weights)
    command = ["convert", "rdm-official", str(source), str(tmp_path / "out"), "--stage", "relay"]
    assert main([*command, "process.prob_length=0.8"]) == 0
    objective = read_snapshot(tmp_path / "out").objective
    assert isinstance(objective, RelayConfig)
    assert objective.process.prob_length == 0.8


def rejection(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.usefixtures("official_module")
def test_bad_checkpoints_are_rejected(
    weights: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def convert(path: Path, *options: str) -> str:
        out = str(tmp_path / "out")
        return rejection(["convert", "rdm-official", str(path), out, *options], capsys)

    whole = write_official(tmp_path / "snapshot.pkl", weights)
    assert "give --images-seen" in convert(whole)
    assert "cannot be read: No such file" in convert(tmp_path / "missing.pkl")
    assert "unknown setting" in convert(whole, "--images-seen", "1", "sampling.stepps=3")
    for cut in (0.2, 0.6, 0.99):
        for path in (whole, write_official(tmp_path / "state.pt", weights)):
            broken = tmp_path / f"broken{path.suffix}"
            broken.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
            assert "truncated" in convert(broken)
    other = write_official(tmp_path / "other.pt", weights, num_blocks=2)
    assert "missing (enc.8x8_block1.norm0.weight" in convert(other)
    wide = write_official(tmp_path / "wide.pt", weights, label_dim=5)
    assert "map_label.weight is [32, 4], expected [32, 5]" in convert(wide)
    song = write_official(tmp_path / "song.pt", weights, model_type="SongUNet")
    assert "is a SongUNet" in convert(song)
    filtered = weights | {"model.enc.8x8_conv.resample_filter": torch.ones(1, 1, 2, 2)}
    assert "is not the 2x2 mean" in convert(write_official(tmp_path / "filter.pt", filtered))
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"mu": 1}))
    assert "no network 'ema'" in convert(tmp_path / "plain.pkl")
    assert not (tmp_path / "out").exists()


BLUR = {
    "P_mean": -1.0, "P_std": 1.1, "sigma_data": 0.5, "up_scale": 2, "prob_length": 0.8,
    "blur_sigma_max": 2, "min_scale": 0.001, "block_scale": 0.25,
}  # fmt: skip


@pytest.mark.usefixtures("official_module")
def test_the_recorded_process_is_taken(weights: dict[str, Tensor], tmp_path: Path) -> None:
    relay, out = module("BlurLoss", {}, **BLUR), tmp_path / "out"
    source = write_official(
        tmp_path / "s.pkl", weights, loss=relay, attributes={"sigma_min": 0, "sigma_data": 0.5}
    )
    assert main(["convert", "rdm-official", str(source), str(out), "--images-seen", "1"]) == 0
    objective = read_snapshot(out).objective
    assert isinstance(objective, RelayConfig)
    process = objective.process
    assert (process.p_mean, process.p_std, process.upscale) == (-1.0, 1.1, 2)
    assert (process.blur_sigma_max, process.prob_length) == (2.0, 0.8)
    assert process.block_noise_alpha == 0.25
    source = write_official(tmp_path / "d.pt", weights, attributes={"sigma_data": 0.25})
    assert main(["convert", "rdm-official", str(source), str(out)]) == 0
    edm = read_snapshot(out).objective
    assert isinstance(edm, EdmConfig)
    assert edm.process.sigma_data == 0.25


@pytest.mark.usefixtures("official_module")
@pytest.mark.parametrize("name", ["s.pkl", "s.pt"])
@pytest.mark.parametrize(
    ("written", "options", "message"),
    [
        ({"wrapper_class": "VPPrecond"}, (), "is a 'VPPrecond', expected EDMPrecond"),
        ({"wrapper_class": "VEPrecond"}, (), "is a 'VEPrecond', expected EDMPrecond"),
        ({"wrapper_class": "iDDPMPrecond"}, (), "is a 'iDDPMPrecond', expected EDMPrecond"),
        ({"attributes": {"img_resolution": 16}}, (), "img_resolution is 16, but was built as 8"),
        ({"attributes": {"label_dim": 5}}, (), "label_dim is 5, but was built as 4"),
        ({"attributes": {"sigma_data": "x"}}, (), "sigma_data is 'x', not a number"),
        ({"attributes": {"sigma_data": float("nan")}}, (), "sigma_data is 'nan', not a number"),
        ({"attributes": {"sigma_data": -1}}, (), "sigma_data=-1.0 must be positive"),
        ({"attributes": {"sigma_max": 50}}, (), "outside the levels 0.0 to 50.0"),
        ({}, ("process.sigma_data=1",), "sigma_data=1.0, but the checkpoint was trained with 0.5"),
        ({}, ("unet.num_blocks=2",), "missing (enc.8x8_block1.norm0.weight"),
        ({}, ("unet.label_dim=5",), "map_label.weight is [32, 4], expected [32, 5]"),
    ],
    ids=str,
)
def test_networks_of_other_models_are_rejected(
    weights: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    written: dict[str, Any],
    options: tuple[str, ...],
    message: str,
) -> None:
    source = write_official(tmp_path / name, weights, **written)
    command = ["convert", "rdm-official", str(source), str(tmp_path / "out")]
    assert message in rejection([*command, "--images-seen", "1", *options], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("official_module")
@pytest.mark.parametrize(
    ("loss", "attributes", "options", "message"),
    [
        ("VPLoss", {}, (), "trained by 'VPLoss', expected one of EDMLoss, BlurLoss"),
        ("EDMLoss", {}, ("--stage", "relay"), "by the loss of the edm stage, not relay"),
        ("BlurLoss", BLUR, ("--stage", "edm"), "by the loss of the relay stage, not edm"),
        ("EDMLoss", {"sigma_data": 1.0}, (), "has sigma_data=0.5, its loss 1.0"),
        ("BlurLoss", BLUR, ("process.prob_length=0.9",), "was trained with 0.8"),
        ("BlurLoss", BLUR | {"up_scale": 1.5}, (), "up_scale is a float, not a number"),
        ("BlurLoss", BLUR | {"prob_length": []}, (), "prob_length is '[]', not a number"),
        ("BlurLoss", BLUR | {"blur_sigma_max": float("inf")}, (), "must be a finite number"),
    ],
)
def test_losses_of_other_models_are_rejected(
    weights: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    loss: str,
    attributes: dict[str, Any],
    options: tuple[str, ...],
    message: str,
) -> None:
    source = write_official(tmp_path / "s.pkl", weights, loss=module(loss, {}, **attributes))
    command = ["convert", "rdm-official", str(source), str(tmp_path / "out")]
    assert message in rejection([*command, "--images-seen", "1", *options], capsys)


@pytest.mark.usefixtures("official_module")
@pytest.mark.parametrize("name", ["s.pkl", "s.pt"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w * float("nan"), "weights are NaN or infinite"),
        (lambda w: w - float("inf"), "weights are NaN or infinite"),
        (lambda w: w.double() + 1e300, "NaN or infinite ('map_layer0.weight', ...), rounded"),
        (lambda w: w.long(), "are int64, expected bfloat16 or float16"),
    ],
)
def test_unusable_weights_are_rejected(
    weights: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: Callable[[Tensor], Tensor],
    message: str,
) -> None:
    changed = {"model.map_layer0.weight": change(weights["model.map_layer0.weight"])}
    source = write_official(tmp_path / name, weights | changed)
    command = ["convert", "rdm-official", str(source), str(tmp_path / "out")]
    assert message in rejection([*command, "--images-seen", "1"], capsys)


@pytest.mark.usefixtures("official_module")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted(
    weights: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype
) -> None:
    source = write_official(tmp_path / "s.pt", {k: w.to(dtype) for k, w in weights.items()})
    assert main(["convert", "rdm-official", str(source), str(tmp_path / "out")]) == 0
    for name, values in read_snapshot(tmp_path / "out").load_weights().items():
        torch.testing.assert_close(values, weights[f"model.{name}"], rtol=1e-2, atol=1e-2)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('executed')",))


def test_hostile_pickles_are_rejected_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps({"ema": Hostile()}))
    torch.save({"ema": Hostile()}, tmp_path / "hostile.pt")
    for name in ("hostile.pkl", "hostile.pt"):
        command = ["convert", "rdm-official", str(tmp_path / name), str(tmp_path / "out")]
        assert ".exec, which is not allowed; nothing was executed" in rejection(command, capsys)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_survive_every_protocol(protocol: int) -> None:
    content = {
        "mu": np.arange(5.0),
        "sigma": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">i4"),
        "n": np.float64(2.5),
    }
    read = read_pickle(pickle.dumps(content, protocol), NUMPY_GLOBALS)
    assert read.keys() == content.keys()
    assert all(np.array_equal(read[key], content[key]) for key in content)


def test_object_files_of_statistics(tmp_path: Path) -> None:
    np.save(tmp_path / "stat.npy", {"mu": np.zeros(3), "sigma": np.eye(3)})
    statistics = read_pickled_npy(tmp_path / "stat.npy")
    assert np.array_equal(statistics["sigma"], np.eye(3))
    np.save(tmp_path / "plain.npy", np.arange(3))
    assert read_pickled_npy(tmp_path / "plain.npy").tolist() == [0, 1, 2]
    np.save(tmp_path / "hostile.npy", {"mu": Hostile()})
    with pytest.raises(PickleReadError, match=r"builtins\.exec"):
        read_pickled_npy(tmp_path / "hostile.npy")
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(PickleReadError, match=r"is not an \.npy file"):
        read_pickled_npy(tmp_path / "text.npy")


def test_arrays_with_wrong_sizes_are_rejected() -> None:
    state = (1, (1000,), np.dtype("f8"), False, b"short")
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 2)
    pickler.dispatch_table = {
        np.ndarray: lambda array: (
            np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state
        )
    }  # fmt: skip
    pickler.dump(np.zeros(1))
    with pytest.raises(PickleReadError, match="has data for 0 entries"):
        read_pickle(stream.getvalue(), NUMPY_GLOBALS)


def test_external_objects_are_rejected() -> None:
    with pytest.raises(PickleReadError, match="external object 'x'"):
        read_pickle(b"Px\n.", {})


@pytest.mark.usefixtures("official_module")
@pytest.mark.parametrize(
    ("labels", "stage", "options", "name", "changes"),
    [
        (4, "relay", (), "imagenet_relay_guided", {}),
        (4, "relay", ("--sampler", "imagenet_relay"), "imagenet_relay", {}),
        (4, "relay", ("sampling.eta=0.1",), "imagenet_relay_guided", {"eta": 0.1}),
        (4, "edm", (), "imagenet_edm", {}),
        (0, "relay", (), "celebahq_relay", {}),
        (0, "edm", ("sampling.steps=9",), "celebahq_edm", {"steps": 9}),
    ],
)
def test_the_snapshot_has_and_names_the_papers_sampler(
    weights: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    labels: int,
    stage: str,
    options: tuple[str, ...],
    name: str,
    changes: dict[str, float],
) -> None:
    if not labels:
        weights = {key: w for key, w in weights.items() if not key.startswith("model.map_label")}
    source = write_official(tmp_path / "state.pt", weights, label_dim=labels)
    command = ["convert", "rdm-official", str(source), str(tmp_path / "out"), "--stage", stage]
    assert main([*command, *options]) == 0
    assert f"sampler: {name}" in capsys.readouterr().out
    snapshot = read_snapshot(tmp_path / "out")
    assert isinstance(snapshot.objective, EdmConfig | RelayConfig)
    assert snapshot.objective.sampling == replace(SAMPLERS[name], **changes)  # type: ignore[arg-type]
    assert snapshot.provenance["sampler"] == name
    assert snapshot.provenance["sampler_changes"] == changes


@pytest.mark.usefixtures("official_module")
def test_samplers_of_other_networks_are_rejected(
    weights: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_official(tmp_path / "state.pt", weights)
    command = ["convert", "rdm-official", str(source), str(tmp_path / "out"), "--stage", "relay"]
    error = rejection([*command, "--sampler", "celebahq_relay"], capsys)
    assert "does not fit this network; expected imagenet_relay_guided, imagenet_relay" in error
