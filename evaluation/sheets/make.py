"""Make a sheet: features from the store, images chosen by them, picture and record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from dist_train.runtime.world import World
from evaluation.detectors.base import Detector, DetectorConfig
from evaluation.detectors.registry import build_detector
from evaluation.features.extract import extract
from evaluation.features.store import features_dir
from evaluation.image_sets.image_set import ImageSet
from evaluation.image_sets.seeds import parse_seeds
from evaluation.reference.reference import feature_cache
from evaluation.sheets.choose import class_rows, neighbour_rows, realism_rows, seed_rows, set_rows
from evaluation.sheets.sheet import Layout, check_sheet, write_sheet

Kind = Literal["neighbours", "realism", "classes", "seeds", "sets"]
KINDS: tuple[str, ...] = get_args(Kind)
BY_FEATURES = ("neighbours", "realism")
"""Kinds that compare features with those of a reference."""
OF_SEVERAL = ("seeds", "sets")
"""Kinds that show several sets."""


@dataclass(frozen=True, kw_only=True)
class SheetRequest:
    """A sheet.

    Attributes:
        kind: What it shows: samples beside their `neighbours` in the reference, the best and worst
            by `realism`, images by `classes`, several models' samples of equal `seeds`, or whole
            `sets` one below the other.
        sets: Samples or other images: one set, or several for OF_SEVERAL.
        reference: Images that samples are compared with; only for BY_FEATURES.
        out: The PNG; the JSON of what it shows lies beside it.
        rows: Rows of images; of the last set where there are several `sets`.
        columns: Images in a row; `seeds` has one for each set.
        upscale: Integer factor of enlargement.
        classes: Classes that are shown; empty takes the first ones.
        detector: The network whose features are compared.
        tap: Its tap; "" takes the widest one.
        batch_size: Images per forward pass.
        num_features: Features of the reference, where it has more than 100,000 images; null: all.
    """

    kind: Kind
    sets: tuple[ImageSet, ...]
    out: Path
    reference: ImageSet | None = None
    rows: int = 8
    columns: int = 8
    upscale: int = 1
    classes: tuple[int, ...] = ()
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    tap: str = ""
    batch_size: int = 64
    num_features: int | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "upscale", "batch_size"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise ValueError(f"--{option}={getattr(self, name)} must be at least 1")
        if (self.kind in BY_FEATURES) != (self.reference is not None):
            needs = "needs --reference, the images that" if self.reference is None else "compares"
            what = "samples are compared with" if self.reference is None else "nothing with others"
            extra = "" if self.reference is None else "; leave out --reference"
            raise ValueError(f"a sheet of {self.kind} {needs} {what}{extra}")
        if (self.kind in OF_SEVERAL) != (len(self.sets) > 1):
            expected = "two or more sets" if self.kind in OF_SEVERAL else "one set"
            raise ValueError(
                f"a sheet of {self.kind} shows {expected} of images, not {len(self.sets)}"
            )
        check_sheet(self.out)


def make_sheet(request: SheetRequest, world: World) -> None:
    """Write a sheet and its record; the ranks share the features that are not stored yet.

    Raises:
        ValueError: The images do not have what the sheet shows, or cannot be read.
    """
    sets, settings = request.sets, dict[str, Any]()
    if request.reference is not None:
        detector = _detector(request, world)
        (tap,) = detector.widths
        settings = {"detector": detector.identity, "tap": tap}
        layout = _by_features(request, request.reference, detector, tap, world)
        sets = (*sets, request.reference)
    elif world.rank == 0:
        layout = _by_names(request)
    if world.rank == 0:
        identities = [_named(images) for images in sets]
        write_sheet(request.out, layout, sets, identities, settings, request.upscale)
    world.barrier()


def _by_names(request: SheetRequest) -> Layout:
    if request.kind == "seeds":
        return seed_rows(request.sets, request.rows)
    if request.kind == "sets":
        return set_rows(request.sets, request.classes, request.rows, request.columns)
    return class_rows(request.sets[0], request.classes, request.rows, request.columns)


def _by_features(
    request: SheetRequest, reference: ImageSet, detector: Detector, tap: str, world: World
) -> Layout:
    """Return what is shown; features that are stored already are not computed again."""
    (images,), size = request.sets, request.batch_size
    identity = world.broadcast_object(sample_identity(images) if world.rank == 0 else None)
    store = features_dir(request.out.parent)
    (samples,) = extract(images, identity, [detector], store, world, batch_size=size)
    identity = world.broadcast_object(reference.identity if world.rank == 0 else None)
    (compared,) = extract(
        reference, identity, [detector], feature_cache(), world,
        batch_size=size, num_kept=request.num_features or len(reference), title="reference",
    )  # fmt: skip
    rows = neighbour_rows if request.kind == "neighbours" else realism_rows
    return rows(samples, compared, tap, request.rows, request.columns, world)


def _detector(request: SheetRequest, world: World) -> Detector:
    detector = world.attempt(lambda: build_detector(request.detector, world.device))
    widest = max(detector.widths, key=lambda tap: detector.widths[tap])
    return detector.with_taps([request.tap or widest])


def sample_identity(images: ImageSet) -> dict[str, Any]:
    """Return the identity under which `run --keep-images` has stored the features of these images.

    Samples are known by what they were drawn from, other images by their content; so are samples to
    which more seeds were added, or whose seeds are not in the order of the files.
    """
    if images.manifest is None:
        return images.identity
    identity: dict[str, Any] = images.manifest["identity"]
    seeds = parse_seeds(identity["seeds"])
    is_ordered = list(seeds) == sorted(seeds) and len(seeds) == len(images)
    return identity if is_ordered and "digest" in identity else images.identity


def _named(images: ImageSet) -> dict[str, Any]:
    """Return what a record says of a set."""
    identity = sample_identity(images)
    names = ("kind", "path", "seeds", "num_images", "digest")
    found = {name: identity[name] for name in names if name in identity}
    models = [model.get("path") for model in identity.get("models", [])]
    return found | ({"models": models} if models else {})
