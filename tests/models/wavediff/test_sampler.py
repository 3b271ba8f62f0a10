"""Sampling: one stream per image, any batch split, T = 2 and 4, pixels and wavelets."""

import dataclasses
import json

import pytest
import torch

from models.config_io import ConfigError
from models.sampler import sample
from models.snapshot import SnapshotError, load_sampler, read_snapshot, write_snapshot
from models.wavediff.config import WaveDiffConfig
from models.wavediff.data_space import PixelSpace, WaveletSpace
from models.wavediff.diffusion import DiffusionConfig
from tests.models.wavediff.test_objective import TINY, example, random_pair


def variants() -> list[WaveDiffConfig]:
    swapped = WaveletSpace(band_order="LL_HL_LH_HH")
    pixels = {"space": PixelSpace(), "generator": TINY.generator.without_wavelets()}
    return [
        TINY,
        dataclasses.replace(TINY, diffusion=DiffusionConfig(steps=2), space=swapped),
        dataclasses.replace(TINY, **pixels),
        dataclasses.replace(TINY, space=WaveletSpace(wavelet="db2")),
    ]


@pytest.mark.parametrize("config", variants(), ids=["T4", "T2", "pixels", "db2"])
def test_images_depend_on_their_seeds_alone(config):
    sampler = config.build_sampler(random_pair(config)["generator"])
    together = sample(sampler, [3, 1, 2])
    assert together.shape == (3, 3, 16, 16)
    assert together.dtype == torch.uint8
    for seed, image in zip([3, 1, 2], together, strict=True):
        alone = sample(sampler, [seed])[0]
        assert (alone.int() - image.int()).abs().max() <= 1  # summation order inside kernels
    assert not torch.equal(together[0], together[1])
    assert sampler.nfe == {"wavediff": config.diffusion.steps}


def snapshot_of(network, directory):
    return write_snapshot(
        directory,
        network.state_dict(),
        objective=TINY,
        network="generator",
        images_seen=8,
        ema="none",
        provenance={},
    )


def test_snapshot_samples_as_the_network_did(tmp_path):
    network = random_pair()["generator"]
    snapshot = snapshot_of(network, tmp_path / "snapshot")
    restored = load_sampler([snapshot])
    assert torch.equal(sample(restored, [7]), sample(TINY.build_sampler(network), [7]))


@pytest.mark.parametrize("change", ["diffusion.steps=9", "space.band_order=LL_HL_LH_HH"])
def test_other_steps_and_spaces_than_trained_are_rejected(tmp_path, change):
    path = snapshot_of(random_pair()["generator"], tmp_path / "snapshot").path
    with pytest.raises(SnapshotError, match=f"{change.split('.')[0]} cannot be changed afterwards"):
        read_snapshot(path, [change])
    assert read_snapshot(path, ["diffusion.steps=4", "generator.compute_dtype=bfloat16"])


def test_snapshots_from_before_compute_dtype_are_read(tmp_path):
    """The settings of both networks were called `dtype`; overrides must use the new name."""
    path = snapshot_of(random_pair()["generator"], tmp_path / "snapshot").path
    document = json.loads((path / "snapshot.json").read_text())
    del document["checksum"]  # descriptions had none then
    old = json.dumps(document).replace('"compute_dtype": "float32"', '"dtype": "bfloat16"')
    assert old.count('"dtype"') == 2
    (path / "snapshot.json").write_text(old)
    objective = read_snapshot(path).objective
    assert objective.generator.compute_dtype == objective.discriminator.compute_dtype == "bfloat16"
    with pytest.raises(ConfigError, match=r"write generator\.compute_dtype="):
        read_snapshot(path, ["generator.dtype=float32"])


def test_labels_and_relays_are_rejected():
    sampler = TINY.build_sampler(random_pair()["generator"])
    with pytest.raises(ValueError, match="unconditional"):
        sample(sampler, [0], torch.tensor([1]))
    with pytest.raises(ValueError, match="continues from no other stage"):
        TINY.build_sampler(random_pair()["generator"], previous=sampler)


def test_sampling_first_does_not_disturb_training():
    """Coefficients are made once, perhaps in inference mode, and serve both."""
    config = dataclasses.replace(TINY, diffusion=DiffusionConfig(steps=3))
    networks = random_pair(config)
    sample(config.build_sampler(networks["generator"]), [0])
    for name, loss_fn in config.build().losses().items():
        loss_fn(networks, example(config=config), 0)[0].backward()
        assert any(p.grad is not None for p in networks[name].parameters())
