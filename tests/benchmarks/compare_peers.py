"""Our numbers beside torch-fidelity's, clean-fid's and prdc's, as a Markdown table.

    python -m tests.benchmarks.compare_peers CIFAR10_IMAGES IMAGENET_IMAGES

Run by hand in an environment that also has `torch-fidelity`, `clean-fid`, `prdc` and scikit-learn.
Inception's weights are those of the goldens' recipe, the same tensors in both networks, so that
nothing is downloaded; EfficientNet-Lite0's are the trained ones. torchvision, which two of the
peers import but need only to read files, is replaced by an empty module where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from evaluation.detectors.base import DetectorConfig
from evaluation.detectors.registry import build_detector
from evaluation.detectors.resize import clean, tf1
from evaluation.image_sets.image_set import open_images
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.inception_score import contiguous_splits, split_scores
from evaluation.metrics.kid_cmmd import kid_subsets
from evaluation.metrics.precision_recall import manifold_scores
from evaluation.metrics.statistics import gaussian_of
from tests.conftest import COMMITTED_GOLDENS
from tests.evaluation.golden_arrays import Goldens

Array = NDArray[Any]
PEERS = ("torch-fidelity", "clean-fid", "prdc", "torch", "numpy", "scipy", "scikit-learn", "Pillow")
TAPS = ("64", "192", "768", "2048", "logits_unbiased")
NETWORK_IMAGES, FEATURE_IMAGES, CLOSE_UPS = 24, 1000, 32
BATCH = 16
SUBSETS, SUBSET_SIZE, SEED = 50, 100, 2020


class EmptyModule(ModuleType):
    """A module whose every name is an empty class, so that importing from it succeeds."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def stub_torchvision() -> bool:
    """Put empty modules in torchvision's place, unless it is installed; return whether so."""
    if importlib.util.find_spec("torchvision") is not None:
        return False
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms"):
        sys.modules[name] = EmptyModule(name)
    functional = EmptyModule("torchvision.transforms.functional")
    sys.modules[functional.__name__] = functional
    sys.modules["torchvision.transforms"].functional = functional
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    return True


@dataclass(frozen=True)
class Row:
    """One quantity by a peer and by us, and by how much they differ, relative to the peer's."""

    what: str
    peer: str
    theirs: float | None
    ours: float | None
    difference: float

    @classmethod
    def of_values(cls, what: str, peer: str, theirs: float, ours: float) -> Row:
        return cls(what, peer, theirs, ours, abs(theirs - ours) / max(abs(theirs), 1e-300))

    @classmethod
    def of_arrays(cls, what: str, peer: str, theirs: Array, ours: Array) -> Row:
        """The largest difference, relative to the peer's largest value."""
        error = np.abs(theirs.astype(np.float64) - ours).max() / np.abs(theirs).max()
        return cls(what, peer, None, None, float(error))

    def __str__(self) -> str:
        values = ["–" if v is None else f"{v:.9g}" for v in (self.theirs, self.ours)]
        return f"| {self.what} | {self.peer} | {values[0]} | {values[1]} | {self.difference:.1e} |"


def close_ups(imagenet: Path) -> list[Tensor]:
    """Return the first photographs by path, uint8 [1, 3, H, W], each of its own size."""
    paths = sorted(path for path in imagenet.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    images = [np.array(Image.open(path).convert("RGB")) for path in paths[:CLOSE_UPS]]
    return [torch.from_numpy(image).permute(2, 0, 1)[None] for image in images]


def resizing(images: list[Tensor], what: str) -> Iterator[Row]:
    """Compare resized pixels, normalised, over all images."""
    theirs_clean = importlib.import_module("cleanfid.resize").build_resizer("clean")
    theirs_tf1 = importlib.import_module(
        "torch_fidelity.interpolate_compat_tensorflow"
    ).interpolate_bilinear_2d_like_tensorflow1x
    pairs: dict[str, list[tuple[Array, Array]]] = {"torch-fidelity": [], "clean-fid": []}
    for image in images:
        bilinear = (theirs_tf1(image.float(), size=(299, 299), align_corners=False) - 128) / 128
        pairs["torch-fidelity"].append((bilinear.numpy(), tf1(image).numpy()))
        bicubic = (theirs_clean(image[0].permute(1, 2, 0).numpy()) - 128) / 128
        pairs["clean-fid"].append((bicubic.transpose(2, 0, 1)[None], clean(image).numpy()))
    for peer, arrays in pairs.items():
        theirs, ours = (np.concatenate(side) for side in zip(*arrays, strict=True))
        yield Row.of_arrays(f"resized pixels, {what}", peer, theirs, ours)


def both_networks(images: Tensor) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return features of images [N, 3, H, W] by torch-fidelity's network and by ours, each resized
    by its own code, with the same weights."""
    ours = Goldens(COMMITTED_GOLDENS / "evaluation").network()
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    with tempfile.TemporaryDirectory() as directory:
        weights = Path(directory) / "weights.pth"
        torch.save(ours.state_dict(), weights)
        theirs = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", list(TAPS), feature_extractor_weights_path=str(weights)
        )
    found: tuple[dict[str, list[Array]], dict[str, list[Array]]] = (
        {tap: [] for tap in TAPS},
        {tap: [] for tap in TAPS},
    )
    with torch.inference_mode():
        for batch in images.split(BATCH):
            for tap, values in zip(TAPS, theirs(batch), strict=True):
                found[0][tap].append(values.numpy())
            features = ours(tf1(batch))
            for tap in TAPS:
                found[1][tap].append(features["pool" if tap == "2048" else tap].numpy())
    joined = [{tap: np.concatenate(parts) for tap, parts in side.items()} for side in found]
    return joined[0], joined[1]


Pair = tuple[Array, Array]
"""Features of the generated and of the reference images."""


def torch_fidelity(theirs: Pair, ours: Pair, what: str, singular: bool) -> Iterator[Row]:
    """Compare metrics of features; the Fréchet distance only of regular covariances."""
    peer = "torch-fidelity"
    names = ("metric_fid", "metric_kid", "metric_prc")
    fid, kid, prc = (importlib.import_module(f"torch_fidelity.{name}") for name in names)
    tensors = [torch.from_numpy(features) for features in theirs]
    if not singular:
        statistics = [fid.fid_features_to_statistics(features) for features in tensors]
        value = fid.fid_statistics_to_metric(*statistics, verbose=False)
        yield Row.of_values(
            f"Fréchet distance, {what}",
            peer,
            value["frechet_inception_distance"],
            frechet_distance(*(gaussian_of(features) for features in ours)),
        )
    size = min(SUBSET_SIZE, len(theirs[0]) // 2)
    settings = {"kid_subsets": SUBSETS, "kid_subset_size": size, "rng_seed": SEED}
    value = kid.kid_features_to_metric(*tensors, verbose=False, **settings)
    values = kid_subsets(*ours, subsets=SUBSETS, size=size, seed=SEED)
    yield Row.of_values(
        f"KID, {what}", peer, value["kernel_inception_distance_mean"], float(values.mean())
    )
    value = prc.prc_features_to_metric(*tensors, verbose=False)
    scores = manifold_scores(*ours, k=3)
    yield Row.of_values(f"precision, {what}", peer, value["precision"], scores.precision)
    yield Row.of_values(f"recall, {what}", peer, value["recall"], scores.recall)


def inception_score(theirs: Array, ours: Array, what: str) -> Row:
    """Compare the mean score of 10 splits, in order."""
    metric = importlib.import_module("torch_fidelity.metric_isc").isc_features_to_metric
    value = metric(torch.from_numpy(theirs), splits=10, shuffle=False)["inception_score_mean"]
    scores = split_scores(ours, contiguous_splits(len(ours), 10))
    return Row.of_values(f"Inception Score, {what}", "torch-fidelity", value, float(scores.mean()))


def clean_fid(pair: Pair, what: str) -> Iterator[Row]:
    """Compare both distances of clean-fid; its subsets come from numpy's global generator.

    Its networks, which derive from torchvision's, are not used, and left out.
    """
    sys.modules.setdefault("cleanfid.features", EmptyModule("cleanfid.features"))
    fid = importlib.import_module("cleanfid.fid")
    gen, ref = (features.astype(np.float64) for features in pair)
    moments = [part for f in (gen, ref) for part in (f.mean(0), np.cov(f, rowvar=False))]
    ours = frechet_distance(gaussian_of(gen), gaussian_of(ref))
    yield Row.of_values(
        f"Fréchet distance, {what}", "clean-fid", float(fid.frechet_distance(*moments)), ours
    )
    np.random.seed(SEED)
    value = fid.kernel_distance(ref, gen, num_subsets=SUBSETS, max_subset_size=SUBSET_SIZE)
    values = kid_subsets(gen, ref, subsets=SUBSETS, size=SUBSET_SIZE, seed=SEED)
    yield Row.of_values(f"KID, {what}", "clean-fid", value, float(values.mean()))


def prdc(pair: Pair, what: str, k: int) -> Iterator[Row]:
    """Compare the four scores of `compute_prdc`, on float64 features."""
    gen, ref = pair
    module = importlib.import_module("prdc")
    values = module.compute_prdc(ref.astype(np.float64), gen.astype(np.float64), nearest_k=k)
    scores = manifold_scores(gen, ref, k=k)
    for name in ("precision", "recall", "density", "coverage"):
        ours = getattr(scores, name)
        yield Row.of_values(f"{name} (k = {k}), {what}", "prdc", float(values[name]), ours)


def rows(cifar10: Path, imagenet: Path) -> Iterator[Row]:
    """Yield the table; "generated" and reference images are every second one of CIFAR-10's."""
    images = open_images(cifar10)
    yield from resizing(close_ups(imagenet), f"{CLOSE_UPS} of ImageNet")
    spread = np.linspace(0, len(images) - 1, 2 * FEATURE_IMAGES).astype(int).tolist()
    few = images.batch(spread[:: FEATURE_IMAGES // NETWORK_IMAGES][: 2 * NETWORK_IMAGES])
    yield from resizing(list(few[:CLOSE_UPS].split(1)), f"{CLOSE_UPS} of CIFAR-10")
    detector = build_detector(DetectorConfig()).with_taps(["block10", "head"])
    parts = [detector(images.batch(spread[i : i + 100])) for i in range(0, len(spread), 100)]
    features, head = (
        torch.cat([part[tap] for part in parts]).numpy() for tap in ("block10", "head")
    )
    pair, what = (features[::2], features[1::2]), "trained features"
    yield from torch_fidelity(pair, pair, what, singular=False)
    yield inception_score(head, head, what)
    yield from clean_fid(pair, what)
    for k in (3, 5):
        yield from prdc(pair, what, k)
    theirs, ours = both_networks(few)
    for tap in TAPS:
        yield Row.of_arrays(f"Inception `{tap}`", "torch-fidelity", theirs[tap], ours[tap])
    sides = [(side["2048"][::2], side["2048"][1::2]) for side in (theirs, ours)]
    what = "Inception `2048`, each its own network"
    yield from torch_fidelity(sides[0], sides[1], what, singular=True)
    logits = [side["logits_unbiased"] for side in (theirs, ours)]
    yield inception_score(logits[0], logits[1], "Inception, each its own network")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cifar10", type=Path, help="CIFAR-10 images (zip, directory, packed set)")
    parser.add_argument("imagenet", type=Path, help="directory of JPEG photographs of any sizes")
    arguments = parser.parse_args()
    stubbed = stub_torchvision()
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in PEERS))
    print(
        "torchvision: " + ("not installed, an empty module stands in" if stubbed else "installed")
    )
    print("\n| what | peer | theirs | ours | relative difference |\n|---|---|---|---|---|")
    for row in rows(arguments.cifar10, arguments.imagenet):
        print(row, flush=True)


if __name__ == "__main__":
    main()
