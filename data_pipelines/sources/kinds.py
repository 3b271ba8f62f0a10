"""The kinds of sources by their names on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from data_pipelines.sources.base import Source, SourceError
from data_pipelines.sources.cifar10 import Cifar10Source
from data_pipelines.sources.edm import EdmSource, has_labels, read_labels
from data_pipelines.sources.files import (
    DirectorySource,
    ShardsSource,
    TarSource,
    ZipSource,
    detect,
)
from data_pipelines.sources.imagenet import ImagenetSource, ImagenetValidationSource
from data_pipelines.sources.lsun import LsunSource
from data_pipelines.sources.parquet import ParquetSource
from data_pipelines.sources.photographs import PhotographSource
from data_pipelines.sources.stl10 import Stl10Source
from models.plugins import Registry


@dataclass(frozen=True, kw_only=True)
class SourceDetails:
    """What some kinds need besides the path; None for what was not specified.

    Attributes:
        classes: File with the complete class table (imagenet, imagenet-val).
        ground_truth: File with the classes of the images (imagenet-val).
        split: Part of the set, such as `train`.
        image_column: Column of the images (parquet).
        label_column: Column of the classes (parquet).
    """

    classes: Path | None = None
    ground_truth: Path | None = None
    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None

    def specified(self) -> dict[str, object]:
        """Return the details that are not None, by name."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value is not None}


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
        help: What it is, in one line.
        make: Returns the source (`sources.base.Source`) of a path and details, by name.
        details: Names of the SourceDetails that it takes.
        needs: Those of them that it cannot do without.
        has_path: Whether there is something on disk that it is made of.
    """

    help: str
    make: Callable[..., Source]
    details: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    has_path: bool = True


def image_files(path: Path, split: str | None = None) -> Source:
    """Return the source of images in files, whatever holds them: what packing and evaluation list.

    Labels in a `dataset.json`, as EDM writes it, are read.

    Raises:
        SourceError: It is none.
    """
    files = detect(path)
    may_have_labels = split is None and isinstance(files, DirectorySource | ZipSource)
    if may_have_labels and has_labels(path) and read_labels(path) is not None:
        return EdmSource(path, kind=files.kind, published=False)
    return replace(files, split=split)


def _celebahq(path: Path, split: str | None = None) -> Source:
    return _aligned_faces(path, split, "celebahq")


def _ffhq(path: Path, split: str | None = None) -> Source:
    return _aligned_faces(path, split, "ffhq")


def _aligned_faces(path: Path, split: str | None, kind: str) -> Source:
    """Return a published, unlabelled set of image files, whose directories are not classes."""
    return replace(detect(path), kind=kind, published=True, labelled=False, faces=True, split=split)


SOURCES: Registry[Kind] = Registry("kind of source", Kind, {
    "photographs": Kind(
        "crops of the scikit-image wheel's photographs (no SOURCE)",
        PhotographSource,
        has_path=False,
    ),
    "images": Kind(
        "directory, zip, tar or tars of images, detected; class = subdirectory or .cls file",
        image_files,
        details=("split",),
    ),
    "folder": Kind("a directory of image files", DirectorySource, details=("split",)),
    "zip": Kind("a zip of image files", ZipSource, details=("split",)),
    "tar": Kind("a tar of image files, plain or compressed", TarSource, details=("split",)),
    "tars": Kind(
        "a directory of tars of image files (WebDataset's shards)",
        ShardsSource,
        details=("split",),
    ),
    "imagenet": Kind(
        "ILSVRC2012_img_train.tar, or wnid directories",
        ImagenetSource,
        details=("classes", "split"),
    ),
    "imagenet-val": Kind(
        "ILSVRC2012_img_val.tar or its directory, with --ground-truth",
        ImagenetValidationSource,
        details=("classes", "ground_truth", "split"),
        needs=("ground_truth",),
    ),
    "lsun": Kind(
        "an LSUN zip or LMDB, a directory of several, or exported images",
        LsunSource,
        details=("split",),
    ),
    "celebahq": Kind("CelebA-HQ, directory or zip", _celebahq, details=("split",)),
    "ffhq": Kind("FFHQ-style directory or zip", _ffhq, details=("split",)),
    "cifar10": Kind("cifar-10-python.tar.gz or -binary.tar.gz", Cifar10Source, details=("split",)),
    "stl10": Kind("stl10_binary.tar.gz", Stl10Source, details=("split",)),
    "edm": Kind("EDM-style zip or directory with dataset.json", EdmSource),
    "parquet": Kind(
        "Hugging Face parquet file or directory",
        ParquetSource,
        details=("image_column", "label_column", "split"),
    ),
})  # fmt: skip


def make_source(kind: str, path: Path | None, details: SourceDetails | None = None) -> Source:
    """Return the source of a kind.

    Raises:
        SourceError: The kind is unknown, lacks what it needs, or does not take the details.
    """
    if kind not in SOURCES:
        raise SourceError(f"kind {kind!r} is unknown; known are {', '.join(SOURCES)}")
    chosen, specified = SOURCES[kind], (details or SourceDetails()).specified()
    for name in specified.keys() - set(chosen.details):
        raise SourceError(f"{kind} does not take {_flag(name)}; leave it out")
    for name in set(chosen.needs) - specified.keys():
        raise SourceError(f"{kind} needs {_flag(name)}")
    if not chosen.has_path:
        if path is not None:
            raise SourceError(f"{kind} takes no source, only a destination; leave {path} out")
        return chosen.make(**specified)
    if path is None:
        raise SourceError(f"{kind} needs a source and a destination")
    if not path.exists():
        raise SourceError(f"{path} does not exist")
    return chosen.make(path, **specified)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
