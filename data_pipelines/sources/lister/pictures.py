"""What is a picture: sorting the files of a directory or archive into images and what is left out.

Packing and evaluation share it. A file is an image if its extension says so (decoding then finds
damage), or its first bytes do; everything else is listed with the reason.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from data_pipelines.images import SIGNATURE_BYTES, BadImage, is_picture, other_format
from data_pipelines.sources.base import HIDDEN, LINKED_AGAIN, MASK, METADATA, NOT_AN_IMAGE, Skip

IMAGE_EXTENSIONS = frozenset(
    ("jpg", "jpeg", "jpe", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
)
"""Extensions of files that count as images, damaged or not; others are judged by content."""
SIDECARS = frozenset(("cls", "json", "txt"))
"""Extensions of files that may describe the image of the same name."""
NO_IMAGES = SIDECARS | {"csv", "xml", "html", "md", "py", "jsonl", "npy", "npz", "pt", "tar", "zip"}
"""Extensions of files whose content is not looked at: there may be one for each image."""
TOOL_DIRS = frozenset(
    (
        "__macosx", "@eadir", "@tmp", "#recycle", "@recycle", "$recycle.bin", "lost+found",
        "system volume information", "__pycache__", "#snapshot", "found.000",
    )
)  # fmt: skip
"""Directories, in lower case, that file managers and file systems make."""
TOOL_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
MASK_DIRS = re.compile(r"mask[-_ ]?anno", re.IGNORECASE)
FACE_MASK_DIRS = re.compile(
    r"(^|[^a-z])(masks?|anno(tation)?s?|labels?|seg(mentation)?s?|parsing)($|[^a-z])", re.IGNORECASE
)
FACE_PARTS = re.compile(
    r"\d+_(skin|nose|eye_g|ear_r|mouth|hair|hat|neck|neck_l|cloth|[lr]_(eye|brow|ear)|[ul]_lip)"
)
"""CelebAMask-HQ's files `00000_hair.png`: a mask for each part of a face."""


class File(NamedTuple):
    """A file of a directory or archive.

    Attributes:
        name: Its path below the top, with "/".
        size: Its bytes.
        locator: Its place, for readers that need more than the name.
        content: What it has in common with other names of the same bytes; None if there are none.
        is_link: Whether it is a symbolic link to its content.
    """

    name: str
    size: int
    locator: int = 0
    content: tuple[int, ...] | None = None
    is_link: bool = False


class Found(NamedTuple):
    """The files of a directory or archive, and what in it is no file (or is there twice)."""

    files: list[File]
    skips: list[Skip]


ReadStart = Callable[[File, int], bytes]
"""Returns the first bytes of a file, at most as many as asked for; raises BadImage or OSError."""


@dataclass(frozen=True)
class Pictures:
    """The images of a source, sorted by name; files that may describe them; the rest."""

    files: list[File]
    sidecars: dict[str, dict[str, File]]
    """By extension and `stem`."""
    skips: list[Skip]

    def metadata(self, used: str = "") -> list[Skip]:
        """Return the sidecars that are left out, all but those of the extension that was used."""
        kinds = sorted(self.sidecars.keys() - {used})
        return [Skip(f.name, METADATA) for kind in kinds for f in self.sidecars[kind].values()]


def find_pictures(found: Found, read_start: ReadStart, *, faces: bool = False) -> Pictures:
    """Sort files into images, sidecars of images, and what is left out.

    Args:
        found: The files.
        read_start: Reads the first bytes of those whose extension does not say what they are.
        faces: Whether the source is a set of faces, in which masks are easily told from images.
    """
    plain, skips = _split_off(found.files, lambda file: _unwanted(file.name, faces))
    named = [file for file in plain if extension(file.name) in IMAGE_EXTENSIONS]
    stems = {stem(file.name) for file in named}
    sidecars: dict[str, dict[str, File]] = defaultdict(dict)
    unknown = []
    for file in plain:
        kind = extension(file.name)
        if kind in SIDECARS and stem(file.name) in stems:
            sidecars[kind][stem(file.name)] = file
        elif kind not in IMAGE_EXTENSIONS:
            unknown.append(file)
    unknown.sort(key=lambda file: file.locator)  # of a tar, to read it in one pass
    by_content, others = _split_off(unknown, lambda file: _not_a_picture(file, read_start))
    files, repeated = _once([*named, *by_content])
    return Pictures(sorted(files), dict(sidecars), [*found.skips, *skips, *others, *repeated])


def is_hidden(name: str) -> bool:
    """Return whether a file or directory, or one above it, is hidden or made by a tool."""
    directory, _, base = name.rpartition("/")
    return _is_hidden_dir(directory) or base.startswith(".") or base.lower() in TOOL_FILES


def extension(name: str) -> str:
    """Return what follows the last dot of a file's name, in lower case, "" if there is none."""
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name else ""


def stem(name: str) -> str:
    """Return a path without its extension: what an image has in common with its sidecars."""
    directory, slash, base = name.rpartition("/")
    return directory + slash + (base.rpartition(".")[0] or base)


def _split_off(
    files: Iterable[File], reason_of: Callable[[File], str]
) -> tuple[list[File], list[Skip]]:
    """Return the files for which there is no reason to be left out, and the others as skips."""
    kept, skips = [], []
    for file in files:
        if reason := reason_of(file):
            skips.append(Skip(file.name, reason))
        else:
            kept.append(file)
    return kept, skips


def _unwanted(name: str, faces: bool) -> str:
    """Return why a file is left out whatever it holds, "" if it is not."""
    if is_hidden(name):
        return HIDDEN
    directory, _, base = name.rpartition("/")
    if _is_mask_dir(directory, faces) or (faces and FACE_PARTS.fullmatch(stem(base))):
        return MASK
    return ""


@lru_cache(maxsize=1 << 16)
def _is_hidden_dir(directory: str) -> bool:
    parts = [part for part in directory.split("/") if part not in (".", "..")]
    return any(part.startswith(".") or part.lower() in TOOL_DIRS for part in parts)


@lru_cache(maxsize=1 << 16)
def _is_mask_dir(directory: str, faces: bool) -> bool:
    pattern = FACE_MASK_DIRS if faces else MASK_DIRS
    return any(pattern.search(p) or MASK_DIRS.search(p) for p in directory.split("/"))


def _not_a_picture(file: File, read_start: ReadStart) -> str:
    """Return why a file without an image's extension is none, "" if its content is one."""
    if extension(file.name) in NO_IMAGES:
        return NOT_AN_IMAGE
    try:
        start = read_start(file, SIGNATURE_BYTES)
    except BadImage as error:
        return str(error)
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
    if is_picture(start):
        return ""
    other = other_format(start)
    return f"unknown image format: {other}" if other else NOT_AN_IMAGE


def _once(files: Sequence[File]) -> tuple[list[File], list[Skip]]:
    """Leave out further names of one content: links to an image, and what links of images lead to.

    Hard links to an image are images, like copies. Of a store of files without extensions, and
    links that name them, the links are the images.
    """
    names: dict[tuple[int, ...], list[File]] = defaultdict(list)
    for file in files:
        if file.content is not None:
            names[file.content].append(file)
    first = {content: min(same, key=_rank) for content, same in names.items()}
    kept, skips = [], []
    for file in files:
        best = first[file.content] if file.content is not None else file
        if file is best or not (file.is_link or _rank(file)[0] > _rank(best)[0]):
            kept.append(file)
        else:
            skips.append(Skip(file.name, f"{LINKED_AGAIN}: the same file as {best.name}"))
    return kept, skips


def _rank(file: File) -> tuple[bool, bool, str]:
    return extension(file.name) not in IMAGE_EXTENSIONS, file.is_link, file.name
