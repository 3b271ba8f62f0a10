"""Snapshots: the float32 EMA weights of a sampled network, and all that sampling needs to know.

A snapshot is a directory of two files, `weights.safetensors` and `snapshot.json`; the JSON file is
written last, so that a directory that has it is complete. No pickles anywhere.
"""

from __future__ import annotations

import errno
import re
import warnings
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.config_io import ConfigError, differences, from_json, override, to_json
from models.families import AnyObjective, without_sampling
from models.layers import InTf32Mode
from models.plugins import Import
from models.safe_files.atomic import atomic_directory, check_replaceable
from models.safe_files.documents import DocumentError, Format, UnfitDocument, read_object
from models.safe_files.transient import file_sha256
from models.sampler import Sampler

WEIGHTS, DESCRIPTION = "weights.safetensors", "snapshot.json"
CHANGEABLE = {"compute_dtype", "recompute_blocks"}
"""Settings of networks that a snapshot may be given later, besides those of its sampler."""
SHA256 = re.compile("[0-9a-f]{64}")


class SnapshotError(ValueError):
    """A snapshot that is missing, damaged, of a newer format, or of another architecture."""


@dataclass(frozen=True)
class Snapshot:
    """A snapshot on disk, its description read and checked; weights are loaded on demand.

    Attributes:
        path: The directory.
        objective: Configuration of the objective (networks, process, sampler settings).
        network: Name of the network that the weights belong to.
        images_seen: Training progress in images; 0 is the untrained network.
        ema: Description of the averaging, e.g. "halflife 500000 images".
        provenance: Where it came from: run, recipe, data set digest, class names, converter, ...
        weights_sha256: Digest of weights.safetensors.
    """

    path: Path
    objective: AnyObjective
    network: str
    images_seen: int
    ema: str
    weights_sha256: str
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def tf32(self) -> bool | None:
        """Whether its run let float32 products use TF32; None where it left PyTorch's defaults.

        The latter holds for snapshots that were converted, and those of older versions, too.
        """
        compute = self.provenance.get("compute")
        allowed = compute.get("tf32") if isinstance(compute, dict) else None
        return allowed if isinstance(allowed, bool) else None

    def check_weights(self) -> Path:
        """Return the weights' file. Raises SnapshotError if it is missing or damaged."""
        file = self.path / WEIGHTS
        try:
            digest = file_sha256(file)
        except OSError as error:
            raise SnapshotError(f"{file} cannot be read: {error}") from None
        if digest != self.weights_sha256:
            raise SnapshotError(
                f"{file} has sha256 {digest}, its snapshot.json says {self.weights_sha256}:"
                " the file is damaged or was replaced; write the snapshot again"
            )
        return file

    def load_weights(self) -> dict[str, Tensor]:
        """Return the weights by parameter name, float32 on the CPU, after checking their digest.

        Raises:
            SnapshotError: The file is missing or damaged, or weights are not finite float32.
        """
        file = self.check_weights()
        try:
            weights = load_file(file)
        except (OSError, SafetensorError) as error:
            raise SnapshotError(f"{file} cannot be read: {error}") from None
        if problem := describe_unusable(weights, {torch.float32}):
            raise SnapshotError(f"{file}: {problem}; take another snapshot")
        return weights

    def load_network(self, device: torch.device | str = "cpu") -> nn.Module:
        """Return the sampled network with the snapshot's weights, in eval mode, frozen.

        Raises:
            SnapshotError: The description and the weights do not fit, or are impossible.
        """
        described = self.path / DESCRIPTION
        try:
            with torch.device("meta"):
                networks = self.objective.build().build_networks()
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # impossible sizes
            reason = str(error).partition("\n")[0]
            raise SnapshotError(f"{described}: its networks cannot be built: {reason}") from None
        if self.network not in networks:
            raise SnapshotError(
                f"{described} is of the network {self.network[:80]!r}, but its objective has"
                f" {', '.join(networks)}: the snapshot is damaged"
            )
        sampled = self.objective.build().sampled_network
        if self.network != sampled:
            raise SnapshotError(
                f"{described} is of the {self.network}, but images are sampled from the {sampled}:"
                " the snapshot is damaged"
            )
        network = networks[self.network]
        weights = self.load_weights()
        expected = network.state_dict()
        problems = describe_mismatch(expected, weights)
        if problems:
            raise SnapshotError(
                f"{self.path}: {WEIGHTS} does not fit the network of {DESCRIPTION}: {problems}"
            )
        network.load_state_dict(weights, assign=True)
        network.to(device).eval().requires_grad_(False)
        return network


@dataclass(frozen=True)
class _Description:
    """What snapshot.json holds; see Snapshot."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    objective: AnyObjective
    network: str
    images_seen: int
    ema: str
    weights_sha256: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.images_seen < 1 << 62:
            raise ValueError(f"images_seen={self.images_seen} is negative or too large")
        if not SHA256.fullmatch(self.weights_sha256):
            raise ValueError(f"weights_sha256={self.weights_sha256[:80]!r} is no SHA-256")


_FORMAT = Format(
    schema=_Description, version=1, remedy="write the snapshot again; settings change by key=value"
)


def write_snapshot(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    objective: AnyObjective,
    network: str,
    images_seen: int,
    ema: str,
    provenance: Mapping[str, Any],
) -> Snapshot:
    """Write a snapshot atomically (temporary directory, fsync, rename) and return it.

    Weights are stored as contiguous float32. An existing snapshot of that path is replaced.

    Raises:
        NotOurs: The directory holds anything else.
        OSError: It cannot be written.
    """
    tensors = {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in weights.items()}
    with atomic_directory(path, is_snapshot, "a snapshot") as directory:
        try:
            save_file(tensors, directory / WEIGHTS)
        except SafetensorError as error:  # how it reports a full disk
            raise OSError(errno.ENOSPC, str(error), str(directory / WEIGHTS)) from None
        fields = {
            "objective": to_json(objective),
            "network": network,
            "images_seen": images_seen,
            "ema": ema,
            "weights_sha256": file_sha256(directory / WEIGHTS),
            "provenance": dict(provenance),
        }
        _FORMAT.write(directory / DESCRIPTION, fields)
    return read_snapshot(path)


def check_output(path: Path) -> None:
    """Check that a snapshot may be written to a directory. Raises NotOurs if it holds others'."""
    check_replaceable(path, is_snapshot, "a snapshot")


def is_snapshot(path: Path) -> bool:
    """Tell whether a directory holds exactly what write_snapshot writes."""
    files = {entry.name: entry for entry in path.iterdir()}
    if files.keys() != {WEIGHTS, DESCRIPTION}:
        return False
    if not all(file.is_file() and not file.is_symlink() for file in files.values()):
        return False
    try:
        return {"format_version", "weights_sha256"} <= read_object(path / DESCRIPTION).keys()
    except DocumentError:
        return False


def read_snapshot(path: Path, overrides: Sequence[str] = ()) -> Snapshot:
    """Read and check a snapshot's description.

    Args:
        path: A snapshot directory, or a run directory (its newest snapshot is taken).
        overrides: `key=value` changes of the objective's configuration, e.g. `sampling.steps=50`.

    Raises:
        SnapshotError: It is not a snapshot, or of a newer format, or does not parse, or an
            override changes a field fixed at training time.
        ConfigError: An override does not fit.
    """
    snapshot_dir = newest_snapshot(path) if (path / "snapshots").is_dir() else path
    try:
        described = _read_description(snapshot_dir / DESCRIPTION)
    except (OSError, DocumentError) as error:
        needed = _recorded_imports(snapshot_dir / DESCRIPTION)
        raise SnapshotError(f"{snapshot_dir} is not a snapshot: {error}{needed}") from None
    changed = override(described.objective, overrides)
    _check_trained(snapshot_dir, described.objective, changed)
    return Snapshot(path=snapshot_dir, **vars(described) | {"objective": changed})


def _read_description(path: Path) -> _Description:
    """Read a snapshot.json. Raises OSError or DocumentError.

    One whose sampler is rejected now is read with the sampler's defaults, which is said.
    """
    try:
        return _FORMAT.read(path)
    except UnfitDocument as error:
        document = without_sampling(read_object(path))
        if document is None:
            raise
        document.pop("checksum", None)  # of all of it, which was intact
        try:
            described = _FORMAT.decode(document, str(path))
        except DocumentError:
            raise error from None
        warnings.warn(
            f"{error}; until then the sampler's defaults are used instead of all of its"
            " settings in the snapshot",
            stacklevel=3,
        )
        return described


def _recorded_imports(description: Path) -> str:
    """Say what a snapshot that cannot be read was trained with; "" if nothing was imported.

    Snapshots come from others: what they name is not imported unless the user says so.
    """
    try:
        provenance = read_object(description).get("provenance")
        imports: tuple[Import, ...] = from_json(tuple[Import, ...], provenance["imports"])  # type: ignore[index]
    except (OSError, DocumentError, ConfigError, TypeError, KeyError):
        return ""
    return f" (it was trained with --import {' --import '.join(i.name for i in imports)})"


def _check_trained(snapshot_dir: Path, trained: AnyObjective, changed: AnyObjective) -> None:
    """Reject overrides that sampling does not read, or that are fixed at training time.

    The former would change nothing, the latter (process, schedule, sizes) would give noise.
    """
    for key, (before, after) in differences(to_json(trained), to_json(changed)).items():
        group = key.partition(".")[0]
        if group != "sampling" and key.rpartition(".")[2] not in CHANGEABLE:
            raise SnapshotError(
                f"{snapshot_dir} was trained with {key}={before}, not {after}: {group} cannot be"
                " changed afterwards; leave it out, or train (or convert) again"
            )


def newest_snapshot(run_dir: Path) -> Path:
    """Return the run's snapshot with the most images seen. Raises SnapshotError if it has none."""
    complete = sorted(path.parent for path in run_dir.glob("snapshots/[0-9]*/snapshot.json"))
    if not complete:
        raise SnapshotError(f"{run_dir} has no snapshot yet; train it first")
    return complete[-1]


def load_sampler(snapshots: Sequence[Snapshot], device: torch.device | str = "cpu") -> Sampler:
    """Return the sampler of a snapshot, or of a relay: the snapshots of its stages in order.

    Raises:
        SnapshotError: There is no snapshot, or a file is damaged.
        ValueError: The stages do not fit together.
    """
    objectives = [snapshot.objective for snapshot in snapshots]
    return build_sampler(objectives, load_networks(snapshots, device))


def load_networks(
    snapshots: Sequence[Snapshot], device: torch.device | str = "cpu"
) -> list[nn.Module]:
    """Return the networks of a model's stages; each uses TF32 if and only if its run was set to.

    Raises:
        SnapshotError: A file is damaged.
    """
    networks: list[nn.Module] = []
    for snapshot in snapshots:
        network = snapshot.load_network(device)
        tf32 = snapshot.tf32
        networks.append(network if tf32 is None else InTf32Mode(network, tf32))
    return networks


def build_sampler(objectives: Sequence[AnyObjective], networks: Sequence[nn.Module]) -> Sampler:
    """Return the sampler of a model's stages in order.

    Raises:
        SnapshotError: There is no stage.
        ValueError: The stages do not fit together.
    """
    sampler: Sampler | None = None
    for objective, network in zip(objectives, networks, strict=True):
        sampler = objective.build_sampler(network, sampler)
    if sampler is None:
        raise SnapshotError("sampling needs at least one snapshot")
    return sampler


def sampled_classes(snapshots: Sequence[Snapshot]) -> tuple[int, ...]:
    """Return the classes to draw samples of: those that all conditional stages were trained on.

    They are recorded since runs may lack images of some; before, the set's classes were.

    Raises:
        SnapshotError: No class was trained in all stages.
    """
    shared: set[int] | None = None
    for snapshot in snapshots:
        if not (label_dim := snapshot.objective.label_dim):
            continue
        known = len(snapshot.provenance.get("class_names", ())) or label_dim
        trained = snapshot.provenance.get("trained_classes", range(min(known, label_dim)))
        shared = {*trained} if shared is None else shared & {*trained}
    if shared is not None and not shared:
        paths = ", ".join(str(snapshot.path) for snapshot in snapshots)
        raise SnapshotError(f"no class was trained in all stages ({paths}); train them on one set")
    return tuple(sorted(shared or ()))


def check_stages(objectives: Sequence[AnyObjective]) -> None:
    """Reject stages that do not continue from each other; loads no weights.

    Raises:
        ValueError: As `load_sampler` does.
    """
    sampler: Sampler | None = None
    for config in objectives:
        objective = config.build()
        with torch.device("meta"):
            network = objective.build_networks()[objective.sampled_network]
        sampler = config.build_sampler(network, sampler)


class Shaped(Protocol):
    """A tensor, or what becomes one when it is loaded."""

    @property
    def shape(self) -> Sequence[int]:
        """Its edges."""


FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""Dtypes that weights of other programs may have."""


def describe_unusable(weights: Mapping[str, Tensor], dtypes: AbstractSet[torch.dtype]) -> str:
    """Say in one line which weights have other dtypes, or are NaN or infinite; "" if none are."""
    others = [name for name, tensor in weights.items() if tensor.dtype not in dtypes]
    if others:
        known = " or ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        found = str(weights[others[0]].dtype).removeprefix("torch.")
        return f"{len(others)} weights ({others[0][:80]!a}, ...) are {found}, expected {known}"
    broken = [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
    if broken:
        return f"{len(broken)} weights are NaN or infinite ({broken[0][:80]!a}, ...)"
    return ""


def describe_mismatch(expected: Mapping[str, Shaped], found: Mapping[str, Shaped]) -> str:
    """Say in one line how two sets of named tensors differ in names or shapes; "" if they agree."""
    missing = [name for name in expected if name not in found]
    unknown = [
        name if name.isprintable() else ascii(name) for name in found if name not in expected
    ]
    shapes = [
        f"{name} is {list(found[name].shape)}, expected {list(expected[name].shape)}"
        for name in expected
        if name in found and tuple(found[name].shape) != tuple(expected[name].shape)
    ]
    groups = (("missing", missing), ("unknown", unknown), ("other shape", shapes))
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:3])[:300]}{', ...' if len(names) > 3 else ''})"
        for kind, names in groups
        if names
    )
