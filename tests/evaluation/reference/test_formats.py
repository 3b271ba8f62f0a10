"""Statistics files of other tools: written, read back, and rejected when they lie."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import __main__ as cli
from evaluation.image_sets.image_set import open_images
from evaluation.image_sets.npz import NpzArray, read_npz
from evaluation.metrics.statistics import FeatureSet, gaussian_of, stratified
from evaluation.reference.exporters import export, spatial_to_chw
from evaluation.reference.importers import read_statistics, spatial_to_hwc
from evaluation.reference.statistics_file import read_reference, write_reference

RNG = np.random.default_rng(0)
TF1 = {"name": "inception", "pipeline": "tf1"}


@pytest.fixture(scope="module")
def features() -> FeatureSet:
    rows = {"pool": RNG.normal(size=(12, 6)).astype(np.float32)}
    rows["spatial"] = RNG.normal(size=(12, 2023)).astype(np.float32)
    gaussians = {tap: gaussian_of(values) for tap, values in rows.items()}
    meta = {"images": {"digest": "d"}, "detector": TF1 | {"weights_sha256": "w"}}
    return FeatureSet(meta, 12, gaussians, rows, range(12))


def test_our_own_file_comes_back(features: FeatureSet, tmp_path: Path) -> None:
    write_reference(tmp_path / "r.npz", features.thinned(5))
    back = read_reference(tmp_path / "r.npz")
    assert back.n == 12
    chosen = stratified(12, 5)
    assert list(back.selected) == chosen
    assert back.meta["selection"] == "stratified"
    np.testing.assert_array_equal(back.gaussian("pool").sigma, features.gaussian("pool").sigma)
    np.testing.assert_array_equal(back.rows("pool"), features.rows("pool")[chosen])
    with np.load(tmp_path / "r.npz") as file:  # and other tools find what they look for
        np.testing.assert_array_equal(file["mu"], features.gaussian("pool").mu)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("pytorch_fid", "stats.npz"),
        ("edm", "cifar10-32x32.npz"),
        ("edm2", "img512.pkl"),
        ("stat_npy", "cifar10_stat.npy"),
        ("rdm", "activations.npz"),
        ("torch_fidelity", "x-inception-v3-compat-features-2048.pt"),
        ("torch_fidelity_moments", "x-inception-v3-compat-stat-fid-2048.pt"),
        ("clean_fid", "cifar10_legacy_tensorflow_train_32.npz"),
        ("clean_fid_kid", "cifar10_legacy_tensorflow_train_32_kid.npz"),
    ],
)
def test_exported_files_come_back(
    features: FeatureSet, tmp_path: Path, kind: str, name: str
) -> None:
    export(features, tmp_path / name, kind)
    back = read_statistics(tmp_path / name, TF1)
    for tap, gaussian in back.gaussians.items():
        np.testing.assert_allclose(gaussian.mu, features.gaussian(tap).mu, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(
            gaussian.sigma, features.gaussian(tap).sigma, rtol=1e-5, atol=1e-6
        )
    assert "pool" in back.gaussians


def test_adm_batches_are_written_and_read_as_images(
    features: FeatureSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            pixels = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{label}{i}.png")
    images, batch = open_images(tmp_path / "images"), tmp_path / "batch.npz"
    command = ["export", str(tmp_path / "images"), str(batch), "--format", "adm_samples"]
    assert cli.main(command) == 0
    with np.load(batch, allow_pickle=False) as file:
        assert file["arr_0"].shape == (6, 4, 6, 3)
        assert file["arr_1"].tolist() == [0, 0, 0, 1, 1, 1]
    again = open_images(batch)
    assert torch.equal(again.batch(range(6)), images.batch(range(6)))
    labels = again.labels([5, 0])
    assert labels is not None
    assert labels.tolist() == [1, 0]
    reference = tmp_path / "VIRTUAL.npz"
    export(features, reference, "adm_reference", images)
    assert set(read_statistics(reference, TF1).gaussians) == {"pool", "spatial"}
    assert torch.equal(open_images(reference).batch([5]), images.batch([5]))
    with pytest.raises(ValueError, match="add --images"):
        export(features, reference, "adm_reference")
    with pytest.raises(ValueError, match="does not fit statistics made with tf1"):
        export(features, tmp_path / "cifar10_clean_train_32.npz", "clean_fid")


def test_spatial_features_change_order_for_rdm() -> None:
    x = RNG.normal(size=(2, 2023)).astype(np.float32)
    np.testing.assert_array_equal(spatial_to_chw(spatial_to_hwc(x)), x)
    assert spatial_to_hwc(x)[0, 1] == x[0, 17 * 17]


def test_stylegan_sums_become_unbiased_moments(tmp_path: Path, features: FeatureSet) -> None:
    x = features.rows("pool").astype(np.float64)
    content = {
        "capture_all": False, "capture_mean_cov": True, "max_items": None, "num_items": 12,
        "num_features": 6, "all_features": None, "raw_mean": x.sum(0), "raw_cov": x.T @ x,
    }  # fmt: skip
    path = tmp_path / "gan-metrics.pkl"
    path.write_bytes(pickle.dumps(content))
    gaussian = read_statistics(path, TF1).gaussian("pool")
    np.testing.assert_allclose(gaussian.sigma, features.gaussian("pool").sigma, rtol=1e-6)


def test_torch_fidelity_moments_are_read_without_unpickling(
    tmp_path: Path, features: FeatureSet
) -> None:
    gaussian = features.gaussian("pool")
    path = tmp_path / "x-inception-v3-compat-stat-fid-2048.pt"
    torch.save({"mu": gaussian.mu.astype(np.float32), "sigma": gaussian.sigma}, path)
    back = read_statistics(path, TF1).gaussian("pool")
    np.testing.assert_allclose(back.sigma, gaussian.sigma)


def test_adm_reference_batches_give_moments_and_images(
    tmp_path: Path, features: FeatureSet
) -> None:
    images = RNG.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    pool, spatial = features.gaussian("pool"), features.gaussian("spatial")
    arrays = {"mu": pool.mu, "sigma": pool.sigma, "mu_s": spatial.mu, "sigma_s": spatial.sigma}
    path = tmp_path / "VIRTUAL.npz"
    np.savez_compressed(path, arr_0=images, allow_pickle=False, **arrays)
    back = read_statistics(path, TF1)
    assert set(back.gaussians) == {"pool", "spatial"}
    array = NpzArray(path, "arr_0")
    np.testing.assert_array_equal(array.rows([3, 1, 4]), images[[3, 1, 4]])


def test_features_of_other_tools_are_read(tmp_path: Path, features: FeatureSet) -> None:
    rows = features.rows("pool")
    np.savez(tmp_path / "cifar10_clean_train_32_kid.npz", feats=rows)
    np.savez(tmp_path / "reps_dinov2.npz", model="dinov2", reps=rows)
    np.save(tmp_path / "embeddings.npy", rows)
    clean = {"name": "inception", "pipeline": "clean"}
    path = tmp_path / "cifar10_clean_train_32_kid.npz"
    np.testing.assert_array_equal(read_statistics(path, clean).rows("pool"), rows)
    dino = {"name": "dinov2", "pipeline": "dgm_dino"}
    assert read_statistics(tmp_path / "reps_dinov2.npz", dino).rows("cls").shape == rows.shape
    clip = {"name": "clip", "pipeline": "cmmd"}
    assert read_statistics(tmp_path / "embeddings.npy", clip).rows("embedding").shape == rows.shape
    with pytest.raises(ValueError, match="made with the preprocessing clean"):
        read_statistics(path, TF1)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/should-not-exist",)


@pytest.mark.parametrize("suffix", [".pkl", ".npy", ".npz", ".pt"])
def test_pickles_that_would_run_code_are_rejected(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"evil{suffix}"
    content = {"mu": Evil(), "sigma": Evil()}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    elif suffix == ".npy":
        np.save(path, np.array(content, dtype=object))
    elif suffix == ".npz":
        np.savez(path, mu=np.array([Evil()], dtype=object), sigma=np.eye(1))
    else:
        torch.save(content, path)
    reasons = "refused|rejected|never read|cannot be read"
    with pytest.raises(ValueError, match=rf"{path.name}.*({reasons})"):
        read_statistics(path, TF1)


def test_damaged_and_unknown_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "cut.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="cannot be read"):
        read_npz(path)
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match="no known kind"):
        read_statistics(tmp_path / "other.npz", TF1)
    with pytest.raises(ValueError, match="does not exist"):
        read_statistics(tmp_path / "nothing.npz", TF1)
