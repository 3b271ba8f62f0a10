"""Official checkpoints: both containers, inferred and named configurations, bad input."""

import argparse
import collections
import pickle
import re

import pytest
import torch

from models.__main__ import main
from models.convert.wavediff import convert_official
from models.convert.wavediff_files import OfficialFileError, read_official, wavediff_config
from models.convert.wavediff_shapes import expected_shape, infer_shape
from models.snapshot import read_snapshot
from models.wavediff.presets import PRESETS

ARGUMENTS = {
    "image_size": 8, "current_resolution": 8, "num_channels": 12, "patch_size": 1,
    "num_channels_dae": 4, "n_mlp": 1, "ch_mult": [1, 2], "num_res_blocks": 1,
    "attn_resolutions": [4], "nz": 6, "z_emb_dim": 8, "t_emb_dim": 8, "ngf": 2,
    "num_disc_layers": 3, "num_timesteps": 2, "batch_size": 4, "world_size": 2, "lazy_reg": None,
    "r1_gamma": 2.0, "rec_loss": True, "use_pytorch_wavelet": True, "net_type": "wavelet",
    "dataset": "cifar10", "dropout": 0.0, "fir_kernel": [1, 3, 3, 1],
}  # fmt: skip


def official_weights(seed: int = 0, **changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    network = wavediff_config(ARGUMENTS | changes).build().build_networks()["generator"]
    return {f"module.{name}": weight for name, weight in network.state_dict().items()}


@pytest.fixture
def netg(tmp_path):
    torch.save(collections.OrderedDict(official_weights()), tmp_path / "netG_7.pth")
    return tmp_path / "netG_7.pth"


@pytest.fixture
def content(tmp_path):
    weights = official_weights()
    states = {
        index: {"step": 3, "exp_avg": weight, "exp_avg_sq": weight, "ema": weight + 1}
        for index, weight in enumerate(weights.values())
    }
    document = {
        "epoch": 5,
        "global_step": 30,
        "args": argparse.Namespace(**ARGUMENTS),
        "netG_dict": weights,
        "netD_dict": {},
        "optimizerG": {"state": states, "param_groups": []},
        "optimizerD": {},
    }
    torch.save(document, tmp_path / "content.pth")
    return tmp_path / "content.pth"


def test_content_becomes_an_ema_snapshot(content, tmp_path):
    snapshot = convert_official(content, tmp_path / "out")
    assert read_snapshot(tmp_path / "out").objective == snapshot.objective
    assert snapshot.objective == wavediff_config(ARGUMENTS)
    assert snapshot.objective.space.band_order == "LL_HL_LH_HH"
    assert snapshot.objective.r1_interval == 1
    assert snapshot.images_seen == 30 * 4 * 2
    raw = convert_official(content, tmp_path / "raw", averaged=False)
    for name, weight in raw.load_weights().items():
        torch.testing.assert_close(snapshot.load_weights()[name], weight + 1)
    assert (snapshot.ema, raw.ema) == ("official", "none")


def test_netg_takes_sizes_from_shapes_and_the_rest_from_options(netg, tmp_path):
    snapshot = convert_official(
        netg,
        tmp_path / "out",
        resolution=16,
        overrides=["diffusion.steps=2", "space.band_order=LL_HL_LH_HH"],
    )
    wanted = wavediff_config(ARGUMENTS)
    assert snapshot.objective.generator == wanted.generator
    assert snapshot.objective.diffusion == wanted.diffusion
    assert snapshot.provenance["epoch"] == 7
    torch.testing.assert_close(
        snapshot.load_weights()["z_transform.1.weight"],
        official_weights()["module.z_transform.1.weight"],
    )


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_of_every_published_network_are_inferred(name):
    config = PRESETS[name]()
    with torch.device("meta"):
        weights = config.build().build_networks()["generator"].state_dict()
    edge = config.space.edge(config.resolution)
    wanted = expected_shape(config.generator, config.space.channels, edge)
    assert infer_shape(weights) == wanted


def test_weights_of_another_size_are_rejected(netg, tmp_path):
    with pytest.raises(OfficialFileError, match=r"base_channels=4 .configured 128.*: none"):
        convert_official(netg, tmp_path / "out", preset="wavediff_stl10")
    with pytest.raises(OfficialFileError, match=r"no published size.*give --resolution"):
        convert_official(netg, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_another_data_set_name_the_presets_that_fit(tmp_path):
    with torch.device("meta"):
        network = PRESETS["wavediff_lsun_church256"]().build().build_networks()["generator"]
    shapes = {name: (weight.shape) for name, weight in network.state_dict().items()}
    file = tmp_path / "netG_400.pth"
    zero = torch.zeros(())
    torch.save({f"module.{name}": zero.expand(shape) for name, shape in shapes.items()}, file)
    with pytest.raises(OfficialFileError, match="wavediff_celebahq256 and wavediff_lsun_church256"):
        convert_official(file, tmp_path / "out")
    with pytest.raises(
        OfficialFileError, match=r"channel_multipliers=\(1, 2, 2, 2, 4\) .configured"
    ):
        convert_official(file, tmp_path / "out", preset="wavediff_celebahq512")


def test_content_of_another_data_set_is_rejected(content, tmp_path):
    with pytest.raises(
        OfficialFileError, match="trained with resolution=16, preset wavediff_stl10"
    ):
        convert_official(content, tmp_path / "out", preset="wavediff_stl10")


def test_missing_and_additional_weights_are_rejected(tmp_path):
    weights = official_weights()
    weights.pop("module.all_modules.4.Conv_1.bias")
    weights["module.extra"] = torch.zeros(2)
    torch.save(weights, tmp_path / "netG_1.pth")
    with pytest.raises(OfficialFileError, match=r"1 missing .*Conv_1.bias.*1 unknown .extra"):
        convert_official(tmp_path / "netG_1.pth", tmp_path / "out", resolution=16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resblock_type": "ddpm"}, "resblock_type='ddpm' is not supported"),
        ({"progressive": "residual"}, "progressive='residual' is not supported"),
        ({"embedding_type": "fourier"}, "embedding_type='fourier' is not supported"),
        ({"fir_kernel": [1, 2, 1]}, "fir_kernel=.1, 2, 1. is not supported"),
    ],
)
def test_settings_that_cannot_run_are_rejected(changes, message):
    with pytest.raises(OfficialFileError, match=message):
        wavediff_config(ARGUMENTS | changes)


def test_missing_settings_are_named():
    with pytest.raises(OfficialFileError, match="the training settings lack 'nz'"):
        wavediff_config({k: v for k, v in ARGUMENTS.items() if k != "nz"})


class Bomb:
    def __reduce__(self):
        return print, ("exploded",)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bomb", "pickle protocol"),
        ("zipped bomb", "it asks for .*print, which is neither weights nor settings"),
        ("text", "is no readable weight file"),
        ("list", "holds a list"),
        ("missing", "cannot be read"),
        ("empty", "it is empty or cut off"),
        ("truncated", "failed reading zip archive"),
        ("numbers", "is a int, not a weight"),
    ],
)
def test_bad_files_give_one_line_and_code_2(kind, message, tmp_path, capsys, netg):
    file = tmp_path / "netG_9.pth"
    if kind == "bomb":
        file.write_bytes(pickle.dumps({"module.a": Bomb()}))
    elif kind == "zipped bomb":
        torch.save({"module.a": Bomb()}, file)
    elif kind == "empty":
        file.touch()
    elif kind == "text":
        file.write_text("not a checkpoint")
    elif kind == "list":
        torch.save([torch.zeros(1)], file)
    elif kind == "truncated":
        file.write_bytes(netg.read_bytes()[:2000])
    elif kind == "numbers":
        torch.save({"module.a": 3}, file)
    code = main(["convert", "wavediff-official", str(file), str(tmp_path / "out")])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err)
    assert "weights_only" not in captured.err  # torch's advice is to read it unsafely
    assert "exploded" not in captured.out
    assert not (tmp_path / "out").exists()


def test_command_converts(netg, tmp_path, capsys):
    out = str(tmp_path / "out")
    command = ["convert", "wavediff-official", str(netg), out, "diffusion.steps=2"]
    assert main([*command, "--resolution", "16"]) == 0
    assert "EMA weights" in capsys.readouterr().out
    assert read_snapshot(tmp_path / "out").objective.diffusion.steps == 2
    assert main([*command, "--resolution", "16", "diffusion.step=3"]) == 2
    assert "unknown setting" in capsys.readouterr().err


def test_step_counts_of_both_kinds_are_accepted(content):
    assert read_official(content).steps == 30


def rejected(message, *arguments, **options):
    with pytest.raises(ValueError, match=message) as caught:
        convert_official(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert not arguments[1].exists()


@pytest.mark.parametrize(
    "override",
    ["diffusion.steps=4", "diffusion.beta_max=10", "space.band_order=LL_LH_HL_HH",
     "generator.tanh=false", "generator.centered=false"],
)  # fmt: skip
def test_what_the_file_records_is_not_overridden(content, tmp_path, override):
    key = override.partition("=")[0]
    rejected(f"trained with {key}=", content, tmp_path / "out", overrides=[override])
    convert_official(content, tmp_path / "new", overrides=["generator.compute_dtype=bfloat16"])


def test_options_that_contradict_the_file_are_rejected(content, netg, tmp_path):
    rejected("--resolution=32, but the checkpoint", content, tmp_path / "out", resolution=32)
    rejected("holds averaged weights alone", netg, tmp_path / "out", resolution=16, averaged=False)
    convert_official(content, tmp_path / "new", resolution=16)


@pytest.mark.parametrize("left", [0, 5])
def test_averages_that_are_missing_are_not_replaced_by_raw_weights(content, tmp_path, left):
    document = torch.load(content, weights_only=False)
    states = document["optimizerG"]["state"]
    for index in [*states][left:]:
        del states[index]["ema"]
    torch.save(document, content)
    count = len(states)
    message = rf"no average .* of {count - left} of its {count} weights; add --raw"
    rejected(message, content, tmp_path / "out")
    assert convert_official(content, tmp_path / "raw", averaged=False).ema == "none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w * float("nan"), "weights are NaN or infinite"),
        (lambda w: w + float("inf"), "weights are NaN or infinite"),
        (lambda w: w.double() * 1e300, "weights are NaN or infinite"),
        (lambda w: w.long(), "or no weight .torch.int64"),
        (lambda w: w[None], "are not those of a WaveDiff"),
    ],
)
def test_unusable_weights_are_rejected(tmp_path, change, message):
    weights = {name: change(weight + 1) for name, weight in official_weights().items()}
    torch.save(weights, tmp_path / "netG_1.pth")
    rejected(message, tmp_path / "netG_1.pth", tmp_path / "out", resolution=16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_and_strides_are_converted(tmp_path, dtype):
    official = official_weights()
    weights = {name: w.to(dtype).T.contiguous().T for name, w in official.items() if w.dim() == 2}
    torch.save(official | weights, tmp_path / "netG_1.pth")
    snapshot = convert_official(tmp_path / "netG_1.pth", tmp_path / "out", resolution=16)
    for name, values in snapshot.load_weights().items():
        torch.testing.assert_close(values, official[f"module.{name}"], rtol=1e-2, atol=1e-2)


def test_the_discriminator_is_not_taken_for_the_generator(tmp_path):
    network = wavediff_config(ARGUMENTS).build().build_networks()["discriminator"]
    torch.save(network.state_dict(), tmp_path / "netD_1.pth")
    for options in ({"resolution": 16}, {"preset": "wavediff_cifar10"}, {}):
        rejected(".", tmp_path / "netD_1.pth", tmp_path / "out", **options)
