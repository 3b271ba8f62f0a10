"""`data.json` of a run: which images it is trained on. With others it is another run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data_pipelines.packed.manifest import SHA256, DatasetInfo
from dist_train.runtime.world import World
from models.config_io import ConfigError
from models.safe_files.documents import Format

DATA = "data.json"


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run records of its training set.

    Attributes:
        digest: That of DatasetInfo: content, labels, selection and mix.
        order: That of DatasetInfo: windows of the shuffle.
        num_images: Images per epoch.
        class_names: Names by class index.
    """

    IGNORES_UNKNOWN: ClassVar[bool] = True
    digest: str
    order: str
    num_images: int
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("digest", "order"):
            value = getattr(self, name)
            if not SHA256.fullmatch(value) and (value or name == "digest"):
                raise ValueError(f"{name}={value[:80]!r} is no SHA-256")


_FORMAT = Format(
    schema=RunData,
    version=1,
    needs_checksum=True,
    remedy="restore it from a backup; if data.path is the set that the run was started with, the"
    " file can be removed: it is written again",
)


def check_data(run_dir: Path, info: DatasetInfo) -> bool:
    """Check that a set is the one that a run was started with; writes nothing.

    Where the set is does not matter, nor which backend reads it.

    Returns:
        Whether the run has recorded its set; runs of older versions have not.

    Raises:
        ConfigError: It is another set; names both.
        DocumentError: The record is damaged.
    """
    try:
        recorded = _FORMAT.read(run_dir / DATA)
    except FileNotFoundError:
        return False
    if (recorded.digest, recorded.order) == (info.digest, info.order):
        return True
    if recorded.digest == info.digest:
        difference = (
            f"the same {info.num_images} images in another order: in other shards, or shuffled"
            " within other windows, as those of a remote set are"
        )
    else:
        difference = f"{_described(recorded)}; data.path is now one of {_described(info)}"
    raise ConfigError(
        f"{run_dir} was started with another set than data.path ({DATA}: {difference}); {_REMEDY}"
    )


def check_same_data(where: Path, identity: str, info: DatasetInfo) -> None:
    """Check that a set is the one that a checkpoint was trained on; old ones name none, "".

    Raises:
        ConfigError: It is another set.
    """
    if identity not in ("", info.identity):
        raise ConfigError(
            f"{where} was trained on another set (digest {identity[:16]}); data.path is one of"
            f" {_described(info)}; {_REMEDY}"
        )


def check_alike(info: DatasetInfo, world: World) -> None:
    """Check that all ranks have the same set. Collective.

    Raises:
        ConfigError: On all ranks: one has another set than rank 0, for instance on its node's disk.
    """
    for rank, other in enumerate(world.gather_objects(info)):
        if other.identity != info.identity:
            raise ConfigError(
                f"rank {rank} has another set at data.path ({_described(other)}) than rank"
                f" {world.rank} ({_described(info)}); copy one set to all nodes"
            )


def record_data(run_dir: Path, info: DatasetInfo) -> None:
    """Write `data.json`."""
    fields = {
        "digest": info.digest,
        "order": info.order,
        "num_images": info.num_images,
        "class_names": list(info.class_names),
    }
    _FORMAT.write(run_dir / DATA, fields)


_REMEDY = "put back the set that the run was started with, or use another run directory"


def _described(data: RunData | DatasetInfo) -> str:
    classes = len(data.class_names)
    return f"{data.num_images} images, {classes} classes, digest {data.digest[:16]}"
