"""Packed sets: manifest, index, shards, the beton and its index, locally and from afar."""

from __future__ import annotations

from pathlib import Path

from data_pipelines import remote_files
from data_pipelines.__main__ import main
from data_pipelines.backends.build import build_pipeline
from data_pipelines.backends.sample_reader import TooManyCorrupt
from data_pipelines.images import BadImage
from data_pipelines.packed import remote
from data_pipelines.packed.beton import write_beton
from data_pipelines.packed.beton_reader import BetonSamples
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.packed.remote import FileCache
from data_pipelines.pipeline import DataConfig, Share
from data_pipelines.remote_files import Unreachable
from tests.data_sets import encoded, packed_set, smooth_pixels
from tests.fuzz.subject import Difference, Result, Subject, as_a_command, digest, run

IMAGES = 12


def make_set(path: Path, number: int) -> None:
    """Write two classes of six images in three shards; the other set has three classes."""
    source = path.with_name(f"{path.name}-source")
    for label in range(2 + number):
        class_dir = source / f"class{label}"
        class_dir.mkdir(parents=True)
        for image in range(IMAGES // (2 + number)):
            pixels = smooth_pixels(100 * number + 10 * label + image, 20, 18)
            (class_dir / f"{image}.png").write_bytes(encoded(pixels))
    packed_set(source, path, resolution=16, shard_images=5)


def make_beton(path: Path, number: int) -> None:
    make_set(path, number)
    write_beton(path)


def info(tree: Path) -> Result:
    run(main, "info", tree)
    run(main, "info", "--classes", tree)
    return {"": digest(ShardedImages(tree, check_index=False, check_sizes=False).manifest)}


def check(tree: Path) -> Result:
    run(main, "check", tree, "--workers", "1")
    return {"": "intact"}


def deliver(tree: Path) -> Result:
    """Return an epoch as training gets it, by position."""
    config = DataConfig(path=str(tree), backend="pillow", resolution=16, shuffle=False, workers=1)
    delivered = {}
    with as_a_command(TooManyCorrupt):
        pipeline = build_pipeline(config, seed=0, share=Share(0, 1, IMAGES))
        batches = pipeline.batches(0)
        batch = next(batches)
        batches.close()
        pipeline.close()
        assert batch.labels is not None
        for place, (image, label) in enumerate(
            zip(batch.images, batch.labels.tolist(), strict=True)
        ):
            delivered[f"sample {place} "] = f"{digest(image.numpy().tobytes())} of class {label}"
    return delivered


def read_beton(tree: Path) -> Result:
    """Return what FFCV is given."""
    delivered = {}
    with as_a_command():
        samples = BetonSamples(ShardedImages(tree))
        for index in range(len(samples)):
            try:
                (mode, content), label = samples.read(index)
                delivered[f"sample {index} "] = f"{mode} {digest(content)} of class {label}"
            except BadImage as error:
                print(f"{samples.locate(index)}: {error}")
    return delivered


def read_remote(tree: Path) -> Result:
    """Return what a remote set delivers."""
    delivered = {}
    remote_files.FIRST_DELAY, remote.STALL_SECONDS = 0.0, 3.0
    with as_a_command(Unreachable):
        images = ShardedImages(
            f"pipe:cat {tree}/{{}}", cache=FileCache(tree.parent / "out", 10**9, 0.0)
        )
        for index in range(len(images)):
            try:
                content, label = images.read(index)
                delivered[f"sample {index} "] = f"{digest(content)} of class {label}"
            except BadImage as error:
                print(f"{images.locate(index)}: {error}")
    return delivered


def damaged_ones_are_named(difference: Difference) -> bool:
    """Samples that are missing or replaced by the next are named."""
    return not difference.added and all(name in difference.said for name in difference.changed)


def another_set(difference: Difference) -> bool:
    """A manifest alone is that of its set, whichever that is."""
    return "another tree" in difference.mutation.what


FILES = ("manifest.json", "index.npy", "shards/*.tar")
SUBJECTS = (
    Subject("packed.info", make_set, info, ("manifest.json",), another_set),
    Subject("packed.check", make_set, check, FILES),
    Subject("packed.training", make_set, deliver, FILES, damaged_ones_are_named),
    Subject("packed.remote", make_set, read_remote, FILES, damaged_ones_are_named, caches=True),
    Subject("packed.beton.check", make_beton, check, ("set.beton*", "index.npy")),
    Subject(
        "packed.beton.training", make_beton, read_beton, ("set.beton*",), damaged_ones_are_named
    ),
)
