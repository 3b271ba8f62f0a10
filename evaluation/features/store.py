"""Where features are kept: a directory for each set of images and detector, a file for each tap.

The directory is named by a digest of what its features were made of, so that any request for them
finds them, and no other does. `entry.json` says the same in words, for `gc`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.detectors.base import PYTORCH_TF32, Detector
from evaluation.digest import short_hash
from evaluation.features.batches import PART, BatchStore, MomentStore, TapBatches
from evaluation.image_sets.npz import AnyArray, read_npz, write_npz
from evaluation.metrics.statistics import (
    FeatureSet,
    FloatArray,
    Gaussian,
    selection_of,
    stratified,
)
from models.safe_files.atomic import remove_ours
from models.safe_files.documents import DocumentError, Format
from models.safe_files.locks import FileLock

STREAMING_IMAGES = 100_000
"""Of sets above this size only moments and selected features are stored, not every feature."""
NUM_KEPT = 10_000
"""Features that are stored of those, unless more are asked for."""
MAX_BYTES = 20 << 30
"""Size of a store above which the features that were not used for longest are removed."""
BATCHES = re.compile(rf"\d{{9}}\.npz|{PART}")
"""Files of unfinished features."""
ENTRY = "entry.json"
OWNER = "entry"
"""Array that says whose the features of a file are, `<entry>/<tap>`: files may be exchanged."""
OURS = re.compile(rf"entry\.json|\.lock|\w+\.npz|\w+/({BATCHES.pattern})")
"""Files of an entry."""
UNLOCKED_DAYS = 1.0
"""Days of disuse before which nothing is removed where the file system has no locks."""


@dataclass(frozen=True)
class EntryRecord:
    """What an entry's features were made of.

    Attributes:
        images: Identity of the set.
        detector: Identity of the detector.
        device: Kind of device that the detector ran on.
        batch_size: Images per forward pass; kernels may round by it.
        num_kept: Features stored of a set that is too large to store all; null for other sets.
    """

    images: dict[str, Any]
    detector: dict[str, Any]
    device: str
    batch_size: int
    num_kept: int | None = None


RECORD = Format(schema=EntryRecord, version=1, remedy="delete its directory")


def selected_by(n: int, num_kept: int = NUM_KEPT) -> dict[str, str]:
    """Return what is recorded of how features of a set of n images are selected; {} if all are."""
    return selection_of(n, num_kept) if n > STREAMING_IMAGES else {}


def features_dir(path: Path) -> Path:
    """Return where the features of results in a directory are kept: one place for all of a run.

    Args:
        path: A directory of results, or a run.
    """
    if (path / "evaluation").is_dir():
        return path / "evaluation" / "features"
    for parent in (path, *path.parents):
        if parent.name == "evaluation" and (parent.parent / "config.json").exists():
            return parent / "features"
    return path / "features"


class FeatureEntry:
    """The features of one set of images by one detector.

    Args:
        root: The store.
        images: Identity of the set.
        detector: The detector; its taps are those that are asked for.
        batch_size: Images per forward pass.
        num_kept: Features stored, of all parts of the set, where the set is too large to store all.
    """

    def __init__(
        self,
        root: Path,
        images: Mapping[str, Any],
        detector: Detector,
        batch_size: int,
        num_kept: int,
    ) -> None:
        self._n = int(images["num_images"])
        self.detector = detector
        self.record = EntryRecord(
            images=dict(images),
            detector=dict(detector.identity),
            device=detector.device.type,
            batch_size=batch_size,
            num_kept=num_kept if self._n > STREAMING_IMAGES else None,
        )
        made_of = {**self.record.__dict__, "images": images["digest"]}
        if (tf32 := images.get("tf32", PYTORCH_TF32)) != PYTORCH_TF32:
            made_of["tf32"] = tf32
        self._selection = selected_by(self._n, num_kept)
        made_of.update(self._selection)
        self.path = root / short_hash(made_of)

    def missing(self) -> list[str]:
        """Return the taps whose features are not complete; a link that leads nowhere is read."""
        return [tap for tap in self.detector.widths if not os.path.lexists(self._file(tap))]

    def batches(self, tap: str) -> TapBatches:
        """Return the unfinished features of a tap."""
        path, width = self.path / tap, self.detector.widths[tap]
        if self.record.num_kept is None:
            return BatchStore(path, width)
        return MomentStore(path, width, stratified(self._n, self.record.num_kept))

    def begin(self) -> None:
        """Say what the directory is to hold."""
        RECORD.write(self.path / ENTRY, self.record.__dict__)

    def finish(self, tap: str, names: Sequence[str]) -> None:
        """Merge the batches of a tap, which lie in the files of these names, into its file.

        Without locks another job may have done so meanwhile, and removed them.
        """
        try:
            if tap in self.missing():
                self._merge(tap, names)
        except ValueError:
            if tap in self.missing():
                raise
        remove_ours(self.path / tap, BATCHES)

    def _merge(self, tap: str, names: Sequence[str]) -> None:
        gaussian, features, selected = self.batches(tap).collect(self._n, names)
        arrays = {"mu": gaussian.mu, "sigma": gaussian.sigma, "selected": selected}
        write_npz(self._file(tap), {**arrays, "features": features, OWNER: self._owner(tap)})

    def read(self) -> FeatureSet:
        """Return the features of all taps that are asked for.

        Raises:
            ValueError: A file is damaged; it names the directory to delete.
        """
        gaussians: dict[str, Gaussian] = {}
        features: dict[str, FloatArray] = {}
        selected: list[int] = []
        for tap, width in self.detector.widths.items():
            arrays = self._read(tap)
            try:
                gaussian = Gaussian(arrays["mu"], arrays["sigma"], self._n)
                rows, selected = arrays["features"], arrays["selected"].tolist()
            except KeyError as error:
                raise ValueError(f"{self._file(tap)} lacks {error}; delete {self.path}") from None
            gaussian.check(str(self._file(tap)))
            if rows.shape != (len(selected), width) or gaussian.dim != width:
                raise ValueError(
                    f"{self._file(tap)} holds features of shape {list(rows.shape)}, expected"
                    f" {[len(selected), width]}; delete {self.path}"
                )
            gaussians[tap], features[tap] = gaussian, np.asarray(rows, np.float32)
        meta: dict[str, Any] = {"images": self.record.images, "detector": self.record.detector}
        meta.update(self._selection)
        with contextlib.suppress(OSError):  # for `trim`: when it was used last
            os.utime(self.path / ENTRY, follow_symlinks=False)
        return FeatureSet(meta, self._n, gaussians, features, selected)

    def _read(self, tap: str) -> dict[str, AnyArray]:
        """Return the arrays of a tap; older versions did not write whose they are."""
        try:
            arrays = read_npz(self._file(tap))
        except ValueError as error:
            raise ValueError(f"{error}; delete {self.path}") from None
        if not np.array_equal(arrays.get(OWNER, self._owner(tap)), self._owner(tap)):
            raise ValueError(
                f"{self._file(tap)} holds the features of other images, or of another detector or"
                f" tap; delete {self.path}"
            )
        return arrays

    def _owner(self, tap: str) -> AnyArray:
        return np.frombuffer(f"{self.path.name}/{tap}".encode(), np.uint8)

    def _file(self, tap: str) -> Path:
        return self.path / f"{tap}.npz"


@dataclass(frozen=True)
class StoredEntry:
    """An entry of a store, as `gc` shows it.

    Attributes:
        path: Its directory.
        record: What it was made of; null where that cannot be read.
        size: Bytes.
        used: When it was last used or written to, in seconds since 1970.
    """

    path: Path
    record: EntryRecord | None
    size: int
    used: float

    @property
    def days(self) -> float:
        """Days since it was last used."""
        return max(time.time() - self.used, 0.0) / 86400

    def describe(self) -> str:
        """Return one line: size, age, images and detector."""
        if self.record is None:
            what = "unreadable"
        else:
            images, detector = self.record.images, self.record.detector
            source = images.get("path") or _models(images)
            what = f"{images['num_images']} images of {source}, {detector['name']}"
        return f"{self.size / 1e6:8.1f} MB  {self.days:5.1f} days  {self.path}  {what}"


def entries(root: Path) -> list[StoredEntry]:
    """Return the entries of a store, the least recently used first."""
    found = [_stored(path.parent) for path in root.glob(f"*/{ENTRY}")]
    return sorted(found, key=lambda entry: entry.used)


def use_path(entry: Path) -> Path:
    """Return the lock of an entry, beside it: jobs that read or write the entry share it.

    Who removes the entry holds it alone.
    """
    return entry.with_name(f".{entry.name}.use")


def remove(entry: StoredEntry) -> str:
    """Remove the files of an entry, and its directory if nothing else is in it.

    Returns:
        Why it was left as it is; "" if it was removed. It stays if a job uses it, or if its record
        cannot be read, so that it may be another's.
    """
    if entry.record is None:
        return "unreadable"
    lock = FileLock(use_path(entry.path))
    try:
        if not lock.take():
            return "in use"
        if _stored(entry.path).used > entry.used:
            return "used just now"
        if not lock.works and entry.days < UNLOCKED_DAYS:
            return f"the file system has no locks: kept for {UNLOCKED_DAYS:g} day after its use"
        remove_ours(entry.path, OURS)
    finally:
        lock.release()
    return ""


def trim(root: Path, max_bytes: int = MAX_BYTES, keep: Iterable[Path] = ()) -> list[Path]:
    """Remove what was not used for longest until a store is small enough; returns what was removed.

    Args:
        root: The store.
        max_bytes: Its size that is allowed.
        keep: Entries that stay.
    """
    found, removed = entries(root), []
    excess = sum(entry.size for entry in found) - max_bytes
    kept = set(keep)
    for entry in found:
        if excess > 0 and entry.path not in kept and not remove(entry):
            print(f"removed features to save space: {entry.describe()}", file=sys.stderr)
            removed.append(entry.path)
            excess -= entry.size
    return removed


def _stored(path: Path) -> StoredEntry:
    try:
        record = RECORD.read(path / ENTRY)
    except (DocumentError, OSError):
        record = None
    size, used = 0, 0.0
    for place, _, names in os.walk(path):  # a job may be writing it, or removing it
        for name in names:
            with contextlib.suppress(OSError):
                facts = (Path(place) / name).stat()
                size += facts.st_size
                if name == ENTRY or BATCHES.fullmatch(name):
                    used = max(used, facts.st_mtime)
    return StoredEntry(path, record, size, used)


def _models(images: Mapping[str, Any]) -> str:
    return " -> ".join(str(model.get("path")) for model in images.get("models", []))
