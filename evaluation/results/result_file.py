"""Result files: one JSON per (model, protocol or detector), with every setting and hash."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from dist_train.runtime.world import World
from evaluation.detectors.base import allowed_tf32
from evaluation.disk import write_bytes
from evaluation.features import short_hash
from evaluation.image_sets.image_set import ImageSet
from evaluation.metrics.statistics import FeatureSet

FORMAT = "relaywave-result-1"

Result = dict[str, Any]


def start_result(
    out: Path,
    world: World,
    *,
    title: str,
    images: ImageSet,
    reference: FeatureSet,
    detector: Mapping[str, str],
    protocol: Mapping[str, Any] | None,
) -> Result:
    """Return the result to fill: what the file has of the same inputs, or a result without metrics.

    Args:
        out: The result file, which may exist.
        world: The ranks; all get the same result.
        title: Name in tables.
        images: The evaluated images.
        reference: What they are compared with.
        detector: Identity of the detector.
        protocol: Settings, published values and deviations of the protocol, if one was chosen.
    """
    result = None
    if world.rank == 0:
        result = new_result(
            title=title,
            images=images.identity,
            samples=images.manifest,
            reference=reference,
            detector=detector,
            protocol=protocol,
        )
        if out.exists():
            result = reused(read_result(out), result)
    shared: Result = world.broadcast_object(result)
    return shared


def new_result(
    *,
    title: str,
    images: Mapping[str, Any],
    samples: Mapping[str, Any] | None,
    reference: FeatureSet,
    detector: Mapping[str, str],
    protocol: Mapping[str, Any] | None,
) -> Result:
    """Return a result without metrics.

    Args:
        title: Name in tables.
        images: Identity of the evaluated images.
        samples: Manifest of their directory, if `sample` wrote it.
        reference: What they are compared with.
        detector: Identity of the detector.
        protocol: Name, published values and deviations of the protocol, if one was chosen.
    """
    digest = reference_digest(reference)
    identity = {"images": images["digest"], "reference": digest, "detector": dict(detector)}
    return {
        "format": FORMAT,
        "title": title,
        "identity": short_hash(identity),
        "images": dict(images),
        "samples": samples["identity"] if samples else None,
        "nfe": samples["nfe"] if samples else None,
        "reference": reference.meta | {"n": reference.n, "digest": digest},
        "detector": dict(detector),
        "protocol": dict(protocol) if protocol else None,
        "metrics": {},
        "seconds": {"sampling": samples["seconds"] if samples else None, "features": 0.0},
        "versions": versions(),
        "tf32": samples.get("tf32") if samples else allowed_tf32(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def reused(old: Result, new: Result) -> Result:
    """Return the new result with the metrics and times of an old one of the same inputs."""
    if old["identity"] != new["identity"]:
        return new
    reused_keys = ("metrics", "seconds", "created", "nfe", "tf32")
    return new | {key: old[key] for key in reused_keys if key in old}


def reference_digest(reference: FeatureSet) -> str:
    """Return a digest of the moments that distances are measured to."""
    digest = hashlib.sha256()
    for tap in sorted(reference.gaussians):
        gaussian = reference.gaussians[tap]
        for array in (gaussian.mu, gaussian.sigma):
            digest.update(np.ascontiguousarray(array, np.float64).tobytes())
    return digest.hexdigest()


def read_result(path: Path) -> Result:
    """Read a result file. Raises ValueError if it is not one."""
    try:
        result: Result = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a result: {error}") from None
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(f"{path} is not a result of format {FORMAT}")
    return result


def write_result(path: Path, result: Result) -> None:
    """Write a result file atomically."""
    write_bytes(path, (json.dumps(result, indent=2, default=str) + "\n").encode())


def find_results(paths: list[Path]) -> list[Result]:
    """Read result files, and those below `evaluation/` of run directories.

    Raises:
        ValueError: There are no results.
    """
    files: list[Path] = []
    for path in paths:
        within = path / "evaluation" if (path / "evaluation").is_dir() else path
        files += sorted(within.rglob("*.json")) if within.is_dir() else [path]
    results = [read_result(file) for file in files if _may_be_result(file, paths)]
    if not results:
        raise ValueError(f"no results below {', '.join(map(str, paths))}; evaluate first")
    return results


def _may_be_result(file: Path, named: list[Path]) -> bool:
    """Skip other JSON files of directories; files that were named must be results."""
    return file in named or f'"{FORMAT}"' in file.read_text()[:200]


def versions() -> dict[str, str]:
    """Return the versions of the software that values may depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
