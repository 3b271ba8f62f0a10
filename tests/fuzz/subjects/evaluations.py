"""Evaluations: results, reference statistics, kept features and stored samples."""

from __future__ import annotations

import os
from pathlib import Path

from evaluation.__main__ import main
from evaluation.image_sets.image_set import open_images
from evaluation.reference.statistics_file import read_reference
from evaluation.results.result_file import read_result
from tests.data_sets import encoded, smooth_pixels
from tests.fuzz.subject import Difference, Result, Subject, as_a_command, digest, run
from tests.fuzz.subjects.models import make_snapshot

SAMPLES = 6
RUN = ("--metrics", "fd:block4", "--batch-size", "8")


def make_evaluation(path: Path, number: int) -> None:
    """Evaluate twelve images by statistics of twelve others."""
    for name, first in (("images", 0), ("others", 50)):
        (path / name).mkdir(parents=True)
        for place in range(12):
            pixels = smooth_pixels(100 * number + first + place, 32, 32)
            (path / name / f"{place:02d}.png").write_bytes(encoded(pixels))
    os.environ["RELAYWAVE_CACHE"] = str(path / "cache")
    reference = path / "ref.npz"
    run(main, "reference", path / "others", reference, "--taps", "block4")
    run(main, "run", path / "images", "--reference", reference, "--out", path / "a.json", *RUN)


def make_features(path: Path, number: int) -> None:
    """Keep the features of twelve images and, next to them, those of twelve others."""
    make_evaluation(path, number)
    out = path / "c.json"
    run(main, "run", path / "others", "--reference", path / "ref.npz", "--out", out, *RUN)


def table(tree: Path) -> Result:
    run(main, "table", tree / "a.json")
    with as_a_command():
        result = read_result(tree / "a.json")
    return {name: digest(value) for name, value in result.items()}


def statistics(tree: Path) -> Result:
    """Return what metrics get of a reference."""
    with as_a_command():
        reference = read_reference(tree / "ref.npz")
    found = {"meta": digest(reference.meta), "n": str(reference.n)}
    for tap, gaussian in reference.gaussians.items():
        found[f"mu of {tap}"] = digest(gaussian.mu.tobytes())
        found[f"sigma of {tap}"] = digest(gaussian.sigma.tobytes())
    for tap, rows in reference.features.items():
        found[f"features of {tap}"] = digest(rows.tobytes())
    return found


def features(tree: Path) -> Result:
    """Return the distance by features that are kept next to results."""
    out = tree / "b.json"
    run(main, "run", tree / "images", "--reference", tree / "ref.npz", "--out", out, *RUN)
    return {name: digest(value["values"]) for name, value in read_result(out)["metrics"].items()}


def make_samples(path: Path, number: int) -> None:
    make_snapshot(path / "model", number)
    options = ("--seeds", f"{number}-{number + SAMPLES - 1}", "sampling.steps=2")
    run(main, "sample", path / "model", "--out", path / "samples", *options)


def make_shards(path: Path, number: int) -> None:
    make_snapshot(path / "model", number)
    options = ("--seeds", f"{number}-{number + SAMPLES - 1}", "sampling.steps=2")
    shards = ("--shard-images", "2", "--batch-size", "2")
    run(main, "sample", path / "model", "--out", path / "samples", *options, *shards)


def samples(tree: Path) -> Result:
    """Return the images that detectors get."""
    with as_a_command():
        images = open_images(tree / "samples")
        found = {
            f"image {index}": digest(images.batch([index]).numpy().tobytes())
            for index in range(len(images))
        }
        identity = {name: value for name, value in images.identity.items() if name != "left_out"}
        return found | {"identity": digest(identity)}


def another_one(difference: Difference) -> bool:
    """A result, or a reference, alone is what it is, whichever that is."""
    return "another tree" in difference.mutation.what


def an_image_may_differ(difference: Difference) -> bool:
    """Neither images nor the table of classes have checksums, but as many are there as before."""
    images = [name for name in difference.changed if name != "identity"]
    if difference.mutation.file.endswith("dataset.json"):
        return not images
    most = 2 if "exchanged" in difference.mutation.what else 1
    return difference.mutation.file.endswith(".png") and len(images) <= most


SUBJECTS = (
    Subject("eval.result", make_evaluation, table, ("a.json",), another_one),
    Subject("eval.reference", make_evaluation, statistics, ("ref.npz",), another_one),
    Subject("eval.features", make_features, features, ("features/**/*",), writes=True),
    Subject("eval.samples", make_samples, samples, ("samples/**/*",), an_image_may_differ),
    Subject("eval.shards", make_shards, samples, ("samples/**/*",)),
)
