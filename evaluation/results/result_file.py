"""Result files: one JSON per (model, protocol or detector), with every setting and hash."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL
import torch

from dist_train.runtime.world import World
from evaluation.detectors.base import Detector, allowed_tf32
from evaluation.digest import short_hash
from evaluation.disk import write_bytes
from evaluation.metrics.statistics import SELECTED_BY, STORED, FeatureSet
from evaluation.samples.generate import unlike
from evaluation.samples.postprocess import PostProcess
from models.safe_files.documents import DocumentError, Format, read_object
from models.safe_files.nearest import check_there

FORMAT = "relaywave-result-1"
REUSED = ("metrics", "seconds", "created", "nfe", "images_at_once")
"""What a result takes over from an unfinished or smaller one of the same request."""

Result = dict[str, Any]


@dataclass(frozen=True)
class _RangeMetric:
    """A metric of one of several ranges of seeds: its values by name."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    values: dict[str, float]


@dataclass(frozen=True)
class _Metric:
    """A metric: its values by name, the first one's interval, what it took, and all ranges'."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    values: dict[str, float]
    seconds: float = 0.0
    interval95: tuple[float, float] | None = None
    n_gen: int | None = None
    ranges: dict[str, _RangeMetric] = field(default_factory=dict)


@dataclass(frozen=True)
class _Model:
    """What tables use of a model."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    images_seen: int
    objective: Any
    path: str = ""


@dataclass(frozen=True)
class _Samples:
    """What tables use of how images were made."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    models: tuple[_Model, ...] = ()
    seeds: str = ""
    labels: str = ""
    device: str = ""
    post: PostProcess | None = None
    classes: tuple[int, ...] = ()
    codecs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Images(_Samples):
    """What tables use of the evaluated images."""

    num_images: int
    digest: str


@dataclass(frozen=True)
class _ReferenceImages:
    """What tables use of the images of a reference."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    kind: str = ""
    codecs: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Reference:
    """What tables use of the reference."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    digest: str
    n: int | None
    images: _ReferenceImages = field(default_factory=_ReferenceImages)
    features: int | None = None
    flipped: bool = False


@dataclass(frozen=True)
class _Detector:
    """What tables use of the detector."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    name: str
    pipeline: str
    weights_sha256: str = ""
    label: str = ""
    weights: str = ""


@dataclass(frozen=True)
class _Protocol:
    """What tables use of the protocol."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    name: str
    published: dict[str, float]
    deviations: tuple[str, ...]
    source: str = ""
    circumstances: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Seconds:
    """What drawing samples and extracting features took."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    sampling: float | None
    features: float


@dataclass(frozen=True)
class _Repeat:
    """A range of seeds: the result that it has by itself."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    seeds: str
    identity: str


@dataclass(frozen=True)
class _Result:
    """The types of what is used of a result; all else is kept as it is."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    format: str
    title: str
    identity: str
    images: _Images
    reference: _Reference
    detector: _Detector
    metrics: dict[str, _Metric]
    seconds: _Seconds
    samples: _Samples | None = None
    nfe: float | None = None
    protocol: _Protocol | None = None
    resolution: int | None = None
    made_of: dict[str, Any] = field(default_factory=dict)
    repeats: tuple[_Repeat, ...] = ()


RESULTS = Format(schema=_Result, remedy="move it away to have it computed again", indent=2)


def start_result(out: Path, result: Result, world: World, *, replace: bool = False) -> Result:
    """Return the result to fill: with what the file already has of the same request.

    Args:
        out: The result file, which may exist.
        result: A result without metrics, of rank 0.
        world: The ranks; all get the same result.
        replace: Whether a result of another request may be replaced.

    Raises:
        ValueError: The file holds a result of another request, or is none.
    """
    problem = None
    if world.rank == 0 and out.exists():
        try:
            result = resumed(out, read_result(out), result, replace)
        except ValueError as error:
            problem = str(error)
    problem, result = world.broadcast_object((problem, result))
    if problem:
        raise ValueError(problem)
    return result


def new_result(
    *,
    title: str,
    images: Mapping[str, Any],
    samples: Mapping[str, Any] | None,
    resolution: int,
    reference: FeatureSet,
    detector: Detector,
    settings: Mapping[str, Any],
    protocol: str | None,
) -> Result:
    """Return a result without metrics.

    Args:
        title: Name in tables.
        images: Identity of the evaluated images.
        samples: Manifest of their directory, if `sample` wrote it.
        resolution: Their edge in pixels.
        reference: What they are compared with.
        detector: The detector.
        settings: What else changes values: features, resamples, batch size.
        protocol: Name of the protocol, if one was chosen.
    """
    digest = reference_digest(reference)
    made_of = {
        "images": images["digest"],
        "reference": digest,
        **{f"detector's {key}": value for key, value in detector.identity.items()},
        "device of the detector": detector.device.type,
        **settings,
        "protocol": protocol,
    }
    return {
        "format": FORMAT,
        "title": title,
        "identity": short_hash(made_of),
        "made_of": made_of,
        "images": dict(images),
        "samples": samples["identity"] if samples else None,
        "nfe": samples["nfe"] if samples else None,
        "resolution": resolution,
        "reference": reference.meta
        | {"n": reference.n or None, "digest": digest, "features": reference.num_rows},
        "detector": {**detector.identity, "label": detector.label, "weights": detector.weights},
        "protocol": None,
        "metrics": {},
        "seconds": {"sampling": samples["seconds"] if samples else None, "features": 0.0},
        "versions": versions(),
        "tf32": samples.get("tf32") if samples else images.get("tf32", allowed_tf32()),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def resumed(out: Path, old: Result, new: Result, replace: bool = False) -> Result:
    """Return the new result with the metrics and times of an old one of the same request.

    Raises:
        ValueError: The old one is of another request; the message says in what they differ.
    """
    drawn = _unlike_samples(old, new)
    if old["identity"] == new["identity"] and not drawn:
        return new | {key: old[key] for key in REUSED if key in old}
    if replace:
        return new
    theirs, ours = old.get("made_of", {}), new["made_of"]
    differences = [drawn] if drawn else []
    differences += [
        f"{key} is {theirs.get(key)}, not {ours.get(key)}"
        for key in [*ours, *(key for key in theirs if key not in ours)]
        if theirs.get(key) != ours.get(key) and not (key == "images" and drawn)
    ]
    said = "; ".join(differences) if theirs else "written by an older relaywave"
    raise ValueError(
        f"{out} holds the result of another request ({said}); give another --out, or --replace it"
    )


def _unlike_samples(old: Result, new: Result) -> str:
    """Say in what the samples of two results were drawn in other ways; "" if they were not."""
    both = [
        {"tf32": result.get("tf32")} | (result.get("samples") or result.get("images", {}))
        for result in (old, new)
    ]
    return unlike(*both) if all(images.get("models") for images in both) else ""


def reference_digest(reference: FeatureSet) -> str:
    """Return a digest of what a reference was made of: the images, or a foreign file's moments.

    Features that come from another file, or other images, are part of it, how they were selected,
    and how many a file stores if that is not as by default. The same images give the same digest
    whether their statistics lie in a file or not, and whatever taps they are of.
    """
    digest = _digest_of_moments(reference)
    if features := reference.meta.get("features_from"):
        digest = hashlib.sha256(f"{digest} {features['digest']}".encode()).hexdigest()
    if stored := reference.meta.get(STORED):
        digest = hashlib.sha256(f"{digest} {stored} features".encode()).hexdigest()
    if selection := reference.meta.get(SELECTED_BY):
        digest = hashlib.sha256(f"{digest} {selection}".encode()).hexdigest()
    return digest


def _digest_of_moments(reference: FeatureSet) -> str:
    images = reference.meta.get("images", {}).get("digest")
    if images:
        made_of = [images, reference.meta["detector"], reference.meta.get("flipped", False)]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    digest = hashlib.sha256()
    for tap in sorted(reference.gaussians):
        gaussian = reference.gaussians[tap]
        for array in (gaussian.mu, gaussian.sigma):
            digest.update(np.ascontiguousarray(array, np.float64).tobytes())
    return digest.hexdigest()


def read_result(path: Path) -> Result:
    """Read a result file.

    Raises:
        ValueError: It is none, or damaged; the message is one line that names it.
    """
    try:
        document = read_object(path)
    except (OSError, DocumentError) as error:
        raise ValueError(f"{path} cannot be read as a result: {error}") from None
    return _checked(document, path)


def _checked(document: dict[str, Any], path: Path) -> Result:
    if document.get("format") != FORMAT:
        raise ValueError(f"{path} is not a result of format {FORMAT}")
    RESULTS.decode(document, str(path))
    absent: Result = {"samples": None, "nfe": None, "protocol": None}
    return absent | {name: value for name, value in document.items() if name != "checksum"}


def write_result(path: Path, result: Result) -> None:
    """Write a result file atomically."""
    write_bytes(path, RESULTS.to_bytes(json.loads(json.dumps(result, default=str))))


def check_result_output(path: Path) -> None:
    """Check that a result may be written to a file.

    Raises:
        ValueError: Something else is there, or a damaged result, which is left as it is.
    """
    if os.path.lexists(path) and (path.exists() or not path.is_symlink()):
        read_result(path)


def find_results(paths: list[Path]) -> list[Result]:
    """Read result files, and those below `evaluation/` of run directories.

    Damaged files in directories are skipped by name.

    Raises:
        ValueError: There are no results, or a file that was named is damaged.
    """
    results: list[Result] = []
    for path in paths:
        check_there(path, "a result file, a run, or a directory of results")
    for path in paths:
        within = path / "evaluation" if (path / "evaluation").is_dir() else path
        results += _results_below(within) if within.is_dir() else [read_result(path)]
    if not results:
        raise ValueError(f"no results below {', '.join(map(str, paths))}; evaluate first")
    return results


def _results_below(directory: Path) -> list[Result]:
    """Return the results in a directory; other JSON files are none.

    The result over a protocol's ranges of seeds stands for theirs.
    """
    found: dict[Path, Result] = {}
    for path in sorted(directory.rglob("*.json")):
        if path.name.startswith("."):
            continue
        try:
            document = read_object(path)
            if document.get("format") == FORMAT:
                found[path] = _checked(document, path)
        except (OSError, ValueError) as error:
            print(f"{error}; the file is skipped", file=sys.stderr)
    ranges = {
        range_path(path, number)
        for path, result in found.items()
        for number, repeat in enumerate(result.get("repeats", ()))
        if found.get(range_path(path, number), {}).get("identity") == repeat["identity"]
    }
    return [result for path, result in found.items() if path not in ranges]


def range_path(out: Path, number: int) -> Path:
    """Return the file of the result of one range of seeds, beside that over all of them."""
    return out.with_stem(f"{out.stem}-{number}")


def versions() -> dict[str, str]:
    """Return the versions of the software that values may depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
