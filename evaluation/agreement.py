"""Ranks agree on what they are to do before they do it.

Each rank has read its own command line and files. Where those differ (another working directory or
node-local disk, a script that varies the command line, a node without its GPU), ranks would compute
parts of different results; or wait for each other in different places until the time limit.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from dist_train.runtime.world import World
from evaluation.detectors.base import DetectorConfig, allowed_tf32
from evaluation.detectors.passes import PROBE, fitting_size
from evaluation.detectors.registry import build_detector, weights_of
from evaluation.digest import digest_of, short_hash
from evaluation.image_sets.image_set import ImageSet, read_samples_manifest
from evaluation.image_sets.seeds import format_seeds
from evaluation.metrics.statistics import stratified
from evaluation.protocols import Protocol
from evaluation.reference.reference import ReferenceSettings
from evaluation.request import Evaluation, NewReference, count_images
from evaluation.results.result_file import read_result, versions
from evaluation.samples.generate import GeneratedImages, SampleSpec, describe_snapshot
from evaluation.samples.sample_dir import SampleRequest
from evaluation.sheets.make import BY_FEATURES, SheetRequest
from models.snapshot import Snapshot, read_snapshot

Request = Evaluation | SampleRequest | NewReference
R = TypeVar("R", Evaluation, SampleRequest, NewReference)

CHECKED_IMAGES = 256
"""Images of a set that ranks compare, of all its parts: rank 0 alone reads all of a large set."""
BATCH = 16
SHOWN = 3
"""Differences that are shown."""
LONGEST = 74
"""Characters of a value that are shown; a SHA-256 is."""


def agree(requests: Sequence[Evaluation], world: World) -> list[Evaluation]:
    """Return the requests with the samples, and the results, of rank 0. Collective.

    A run may have got another snapshot while the ranks looked at it: they take that of rank 0.

    Raises:
        ValueError: The ranks were to evaluate unlike things; all of them raise it.
    """
    theirs = world.broadcast_object([(_samples(r), r.out, r.title) for r in requests])
    agreed = [
        _joined(request, *at_rank_0)
        for request, at_rank_0 in zip(requests, theirs, strict=False)  # the check tells the number
    ]
    check_alike([*agreed, *requests[len(agreed) :]], world)
    return [
        dataclasses.replace(request, images=samples) if samples else request
        for request, (samples, _, _) in zip(agreed, theirs, strict=True)
    ]


def agree_on_samples(request: SampleRequest, world: World) -> SampleRequest:
    """Return the samples of rank 0, as `agree` does. Collective."""
    theirs: SampleRequest = world.broadcast_object(request)
    check_alike([_of_same_run(request, theirs) or request], world)
    return theirs


def agree_on_batches(requests: Sequence[R], world: World) -> list[R]:
    """Return the requests with a batch size for `auto`. Collective.

    It is that of the samples or results that are there, else what the devices of all ranks take.

    Raises:
        ValueError: A detector cannot be loaded, or a result be read.
    """
    size = world.attempt(lambda: recorded_batch_size(requests) if world.rank == 0 else None)
    size = world.broadcast_object(size)
    if size is None:
        size = min(world.gather_objects(world.attempt(lambda: _fitting_size(requests, world))))
    return [request.with_batch_size(size) for request in requests]


def recorded_batch_size(requests: Sequence[Request]) -> int | None:
    """Return the batch size of the samples, or else results, that are there, if any.

    Raises:
        ValueError: A result, or the record of samples, is damaged.
    """
    found: list[Any] = []
    for request in requests:
        samples = request if isinstance(request, SampleRequest) else request.images
        if isinstance(samples, SampleRequest) and samples.sample_dir:
            manifest = read_samples_manifest(samples.sample_dir) or {"identity": {}}
            found.insert(0, manifest["identity"].get("batch_size"))
        if isinstance(request, Evaluation) and request.out.exists():
            found.append(read_result(request.out).get("made_of", {}).get("batch size"))
    return next((size for size in found if isinstance(size, int) and size > 0), None)


def _fitting_size(requests: Sequence[Request], world: World) -> int:
    """Return a batch size that this rank's device takes, and of which every rank gets some."""
    sizes = []
    for request in {_networks_of(r): r for r in requests}.values():
        images = request if isinstance(request, SampleRequest) else request.images
        assert images is not None, "images of references exist"
        sizes += [fitting_size(run, world.device) for run in _passes(request, images, world)]
        share = max(count_images(images) // world.size, 1)
        sizes.append(1 << share.bit_length() - 1)
    return min(sizes)


def _networks_of(request: Request) -> tuple[Any, ...]:
    if isinstance(request, SampleRequest):
        return (id(request),)
    return id(request.images), request.detector


def _passes(
    request: Request, images: SampleRequest | ImageSet, world: World
) -> Iterator[Callable[[int], object]]:
    """Yield what takes so many images through each network that a request needs."""
    if isinstance(images, SampleRequest):
        spec = dataclasses.replace(images.spec, seeds=tuple(range(PROBE)), batch_size=PROBE)
        samples = GeneratedImages(images.snapshots, spec, world.device)
        edge = samples.resolution
        yield lambda count: samples.draw(range(count))
    else:
        edge = images.batch([0]).shape[-1]
    if not isinstance(request, SampleRequest):
        detector = build_detector(request.detector, world.device)
        detector = detector.with_taps(request.taps_of(detector))
        yield lambda count: detector(torch.zeros(count, 3, edge, edge, dtype=torch.uint8))


def check_alike(requests: Sequence[Any], world: World) -> None:
    """Check that all ranks have the same requests, files and kind of device. Collective.

    Args:
        requests: Dataclasses of settings, image sets, snapshots and files.
        world: The ranks.

    Raises:
        ValueError: They differ, or a rank cannot read something; all ranks raise it.
    """
    if world.size == 1:
        return
    by_rank = world.gather_objects(world.attempt(lambda: _facts_of_all(requests, world)))
    if said := _differences(by_rank):
        raise ValueError(
            f"the ranks have different requests: {said}; give all of them one command line, and"
            " the same files"
        )


def _samples(request: Evaluation) -> SampleRequest | None:
    return request.images if isinstance(request.images, SampleRequest) else None


def _joined(
    request: Evaluation, samples: SampleRequest | None, out: Path, title: str
) -> Evaluation:
    """Return a request with rank 0's snapshots of the same run, and what is named by them."""
    ours = _samples(request)
    if ours is None or samples is None or not (joined := _of_same_run(ours, samples)):
        return request
    return dataclasses.replace(request, images=joined, out=out, title=title)


def _of_same_run(ours: SampleRequest, theirs: SampleRequest) -> SampleRequest | None:
    """Return our request with the snapshots of another rank, if those are of the same runs.

    They are read again, as this rank sees them.
    """
    pairs = list(zip(ours.snapshots, theirs.snapshots, strict=False))
    if len(ours.snapshots) != len(theirs.snapshots) or all(a.path == b.path for a, b in pairs):
        return None
    if any(a.path.parent != b.path.parent or a.path.parent.name != "snapshots" for a, b in pairs):
        return None
    return dataclasses.replace(ours, snapshots=tuple(_seen(a, b.path) for a, b in pairs))


def _seen(snapshot: Snapshot, path: Path) -> Snapshot:
    """Return the snapshot at a path with the settings, and so the overrides, of another."""
    try:
        return dataclasses.replace(read_snapshot(path), objective=snapshot.objective)
    except ValueError:
        return snapshot  # then the check says that they differ


def _facts_of_all(requests: Sequence[Any], world: World) -> dict[str, Any]:
    """Return what ranks must have in common, by dotted names."""
    own = {
        "device": world.device.type,
        "TF32": allowed_tf32(),
        "versions": versions(),
        "number of requests": len(requests),
    }
    facts = _flat(own)
    for number, request in enumerate(requests, start=1):
        facts |= _flat(_facts(request), f"request {number}: " if number > 1 else "")
    return facts


def _flat(facts: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(facts, dict):
        return {name.removesuffix("."): facts}
    return {k: v for key, part in facts.items() for k, v in _flat(part, f"{name}{key}.").items()}


def _facts(value: Any) -> Any:
    """Return what ranks must have in common of a value: settings, and digests of files."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Protocol):
        return value.name
    if isinstance(value, Snapshot):
        return describe_snapshot(value)
    if dataclasses.is_dataclass(value):
        facts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: _facts(part) for name, part in (facts | _files_of(value)).items()}
    if isinstance(value, (tuple, list)):
        is_plain = all(isinstance(part, (str, int, float)) for part in value)
        parts = enumerate(value, start=1)
        return str(list(value)) if is_plain else {str(number): _facts(p) for number, p in parts}
    if isinstance(value, Path):
        return str(value)
    return _content(value)


def _files_of(value: Any) -> dict[str, Any]:
    """Return the fields of a group of settings of which more counts, or less, than their value."""
    if isinstance(value, SampleSpec):
        return {"seeds": format_seeds(value.seeds)}
    if isinstance(value, DetectorConfig):
        return {"weights": _weights(value)}
    if isinstance(value, ReferenceSettings):
        files = {"statistics": value.statistics, "features": value.features}
        return {name: path and f"of sha256 {digest_of(path)}" for name, path in files.items()}
    if isinstance(value, SheetRequest) and value.kind not in BY_FEATURES:
        return {"detector": None}  # its weights need not be there
    return {}


def _weights(config: DetectorConfig) -> str:
    """Return a digest of a detector's weights file; a plugin's detector may have none."""
    try:
        path = weights_of(config)
    except ValueError:
        return "no file"
    return f"of sha256 {digest_of(path)}"


def _content(images: ImageSet) -> str:
    """Say how many images a set has, with a digest of names, labels and pixels of some of them."""
    digest = hashlib.sha256()
    checked = list(stratified(len(images), CHECKED_IMAGES))
    labels = images.labels(checked)
    digest.update("\0".join(map(images.name, checked)).encode(errors="surrogateescape"))
    digest.update(b"" if labels is None else np.ascontiguousarray(labels).tobytes())
    batches = [checked[start : start + BATCH] for start in range(0, len(checked), BATCH)]
    for batch in images.batches(batches):
        digest.update(str(list(batch.shape)).encode() + batch.numpy().tobytes())
    return f"{len(images)} images of digest {digest.hexdigest()[:12]}"


def _differences(by_rank: Sequence[Mapping[str, Any]]) -> str:
    """Say what differs between the ranks, and on which; "" if nothing does."""
    names = dict.fromkeys(name for facts in by_rank for name in facts)
    said = []
    for name in names:
        ranks_of: dict[str, list[str]] = {}
        for rank, facts in enumerate(by_rank):
            ranks_of.setdefault(_short(facts.get(name, "not there")), []).append(str(rank))
        if len(ranks_of) > 1:
            values = (f"{v} on rank {', '.join(ranks)}" for v, ranks in ranks_of.items())
            said.append(f"{name} is {', but '.join(values)}")
    more = len(said) - SHOWN
    return "; ".join(said[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _short(value: Any) -> str:
    """Return a value as text; what is too long for a line keeps a digest of all of it."""
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({short_hash(text)})"
