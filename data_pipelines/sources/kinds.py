"""The kinds of sources by their names on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.sources.base import Source, SourceError
from data_pipelines.sources.files import FolderSource, TarSource, ZipSource, detect
from data_pipelines.sources.photographs import PhotographSource


@dataclass(frozen=True)
class Kind:
    """A kind of source: how to make one from a path (None: it needs no path), and its help."""

    help: str
    from_path: Callable[[Path], Source] | None


KINDS = {
    "photographs": Kind("crops of the scikit-image wheel's photographs, no download", None),
    "images": Kind("a folder, zip or tar, whichever it is", detect),
    "folder": Kind("image files in a folder, class = sub-folder", FolderSource),
    "zip": Kind("a zip of image files", ZipSource),
    "tar": Kind("a tar of image files, plain or compressed", TarSource),
}


def make_source(kind: str, path: Path | None) -> Source:
    """Return the source of a kind.

    Raises:
        SourceError: The kind is unknown, or needs a path and has none, or the reverse.
    """
    if kind not in KINDS:
        raise SourceError(f"kind {kind!r} is unknown; known are {', '.join(KINDS)}")
    from_path = KINDS[kind].from_path
    if from_path is None:
        if path is not None:
            raise SourceError(f"{kind} takes no source, only a destination; leave {path} out")
        return PhotographSource()
    if path is None:
        raise SourceError(f"{kind} needs a source and a destination")
    return from_path(path)
