"""What a pack is asked to do, as its manifests and its working folder note it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from data_pipelines.manifest import Manifest, canonical_json
from data_pipelines.pack_options import PackOptions
from data_pipelines.sources.base import Listing, Source

_DEFAULTS = asdict(PackOptions(resolution=1))


def make_request(source: Source, listing: Listing, options: PackOptions) -> dict[str, Any]:
    """Return what a manifest must say for its set to be the one that is asked for."""
    identity = {"items": len(listing.entries), "digest": listing.digest()}
    return {
        "kind": source.kind,
        "source": {**source.describe(), **identity},
        "options": {**asdict(options), "resolution": list(options.resolutions)},
    }


def request_of(manifest: Manifest) -> dict[str, Any]:
    """Return the request that a set was packed by."""
    return {name: getattr(manifest, name) for name in ("kind", "source", "options")}


def difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """Say how two requests differ, "" if not; where the source lies does not matter."""
    if found["kind"] != asked["kind"]:
        return f"kind {found['kind']}, not {asked['kind']}"
    noted = {**_DEFAULTS, **found["options"]}  # sets may be older than an option
    for name, value in asked["options"].items():
        if canonical_json(noted[name]) != canonical_json(value):
            return f"{name}={noted[name]}, not {value}"
    if found["source"]["digest"] == asked["source"]["digest"]:
        return ""
    return (
        f"{found['source']['items']} items from {found['source']['path']}, not the"
        f" {asked['source']['items']} now in {asked['source']['path']}"
    )
