"""Samples from seeds: the same images on any number of ranks, written once, resumable.

Batches are cut at fixed places of the list of seeds and the last one is filled up (with the seeds
that would follow) and cut, so an image never depends on who makes it.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dist_train.distributed import World
from evaluation.features import short_hash
from evaluation.grid import encode_image, write_bytes
from evaluation.images import Labels, decode_image
from evaluation.postprocess import QUANTISATIONS, PostProcess
from evaluation.progress import Progress
from models.config_io import to_json
from models.sampler import Sampler, sample
from models.snapshot import Snapshot, load_sampler
from models.streams import stream_seed

LabelPolicy = Literal["balanced", "random"]
MANIFEST = "samples.json"


@dataclass(frozen=True)
class SamplePlan:
    """Which samples are drawn.

    Attributes:
        seeds: One per image, in order.
        labels: `balanced` (class = seed mod classes) or `random` (a uniform draw from the seed).
        batch_size: Images per forward pass; part of the identity, as kernels may round by it.
        post: What happens to the samples afterwards.
    """

    seeds: tuple[int, ...]
    labels: LabelPolicy = "balanced"
    batch_size: int = 64
    post: PostProcess = field(default_factory=PostProcess)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must be given, each once; e.g. --seeds 0-49999")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be positive")

    def labels_of(self, seeds: Sequence[int], label_dim: int) -> Tensor | None:
        """Return the classes of these seeds, int64, or None for an unconditional model."""
        if label_dim == 0:
            return None
        if self.labels == "balanced":
            return torch.tensor([seed % label_dim for seed in seeds])
        return torch.tensor([stream_seed(0, "label", seed) % label_dim for seed in seeds])


class GeneratedImages:
    """The samples of a plan as an image set; made when asked for.

    Args:
        snapshots: The model, or a relay's stages in order.
        plan: Which samples.
        device: Where to sample.

    Attributes:
        seconds: Time that this process has spent on sampling.
    """

    def __init__(
        self, snapshots: Sequence[Snapshot], plan: SamplePlan, device: torch.device | str = "cpu"
    ) -> None:
        self.snapshots, self.plan, self.device = snapshots, plan, torch.device(device)
        self._sampler: Sampler | None = None
        self.seconds = 0.0

    @property
    def sampler(self) -> Sampler:
        """The sampler, loaded when first needed."""
        if self._sampler is None:
            self._sampler = load_sampler(self.snapshots, self.device)
        return self._sampler

    @property
    def identity(self) -> dict[str, Any]:
        """The models' digests and every setting that the images depend on."""
        plan = self.plan
        document = {
            "kind": "generated",
            "models": [describe_snapshot(snapshot) for snapshot in self.snapshots],
            "num_images": len(self),
            "seeds": format_seeds(plan.seeds),
            "labels": plan.labels,
            "batch_size": plan.batch_size,
            "post": asdict(plan.post),
            "device": self.device.type,
        }
        return document | {"digest": short_hash(document)}

    def __len__(self) -> int:
        return len(self.plan.seeds)

    @property
    def nfe(self) -> int:
        """Network evaluations per image, over all stages."""
        return sum(self.sampler.nfe.values())

    def labels(self, indices: Sequence[int]) -> Labels | None:
        """Return the classes of these indices, int64 [B], None for unconditional models."""
        seeds = [self.plan.seeds[i] for i in indices]
        labels = self.plan.labels_of(seeds, self.sampler.label_dim)
        return None if labels is None else labels.numpy()

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the images of these indices, uint8 [B, 3, H, W] on the CPU, post-processed."""
        return self.plan.post.apply(self.draw(indices))

    def draw(self, indices: Sequence[int]) -> Tensor:
        """Return the quantised samples of these indices, uint8 [B, 3, H, W] on the CPU."""
        started = time.monotonic()
        seeds = [self.plan.seeds[i] for i in indices]
        missing = self.plan.batch_size - len(seeds)
        filled = seeds + [seeds[-1] + 1 + i for i in range(missing)]
        labels = self.plan.labels_of(filled, self.sampler.label_dim)
        to_uint8 = QUANTISATIONS[self.plan.post.quantisation]
        images = sample(self.sampler, filled, labels, to_uint8)[: len(seeds)].cpu()
        self.seconds += time.monotonic() - started
        return images


class KeptImages:
    """Generated images that are kept as files: read where they exist, else made and written."""

    def __init__(self, generated: GeneratedImages, folder: Path) -> None:
        self._generated, self.folder = generated, folder
        self.identity = generated.identity
        self.nfe = generated.nfe

    def __len__(self) -> int:
        return len(self._generated)

    def labels(self, indices: Sequence[int]) -> Labels | None:
        """Return the classes of these indices, int64 [B], None for unconditional models."""
        return self._generated.labels(indices)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the images of these indices; afterwards their files exist."""
        post, paths = self._generated.plan.post, [self.path(i) for i in indices]
        if not all(path.exists() for path in paths):
            images = post.retouched(self._generated.draw(indices))
            for path, image in zip(paths, images, strict=True):
                write_bytes(path, encode_image(image, post.codec))
        return torch.stack([decode_image(path.read_bytes(), str(path)) for path in paths])

    def path(self, index: int) -> Path:
        """Return the file of a sample: `{seed - seed % 1000:06d}/{seed:06d}.png`."""
        seed, codec = self._generated.plan.seeds[index], self._generated.plan.post.codec
        suffix = {"png": "png", "jpeg": "jpg"}[codec]
        return self.folder / f"{seed - seed % 1000:06d}" / f"{seed:06d}.{suffix}"


def write_samples(generated: GeneratedImages, folder: Path, world: World) -> KeptImages:
    """Write all samples of a plan below `folder`, on all ranks; what is there is kept.

    A manifest, `samples.json`, says what the folder holds and whether it is complete.

    Raises:
        ValueError: The folder holds other samples, or another job is writing it.
    """
    kept = KeptImages(generated, folder)
    with folder_lock(folder, world):
        seconds = _begin(kept, folder, world)
        starts = range(0, len(kept), generated.plan.batch_size)
        batches = [range(s, min(s + generated.plan.batch_size, len(kept))) for s in starts]
        missing = world.broadcast_object(
            [b for b in batches if not all(kept.path(i).exists() for i in b)]
        )
        total = sum(map(len, missing))
        progress = Progress(total, "samples", visible=world.rank == 0)
        for turn, batch in enumerate(missing[world.rank :: world.size]):
            kept.batch(batch)
            progress.add(len(batch) * min(world.size, len(missing) - turn * world.size))
        world.barrier()
        if world.rank == 0:
            seconds += progress.seconds if missing else 0.0
            _write_manifest(kept, folder, complete=True, seconds=seconds)
        world.barrier()
    return kept


@contextmanager
def folder_lock(folder: Path, world: World) -> Iterator[None]:
    """Hold a folder for this job (or until it dies). Raises ValueError if another job holds it."""
    problem = None
    lock = None
    if world.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 - held until the end of the block
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            problem = (
                f"{folder} is being written by another job; wait for it, or use another folder"
            )
    problem = world.broadcast_object(problem)
    try:
        if problem:
            raise ValueError(problem)
        yield
    finally:
        if lock:
            lock.close()


def _begin(kept: KeptImages, folder: Path, world: World) -> float:
    """Check what the folder holds, mark it unfinished; return the seconds spent on it so far."""
    problem, seconds = None, 0.0
    if world.rank == 0:
        manifest = read_manifest(folder)
        if manifest and _made_by(manifest["identity"]) != _made_by(kept.identity):
            problem = (
                f"{folder} holds samples of another model or with other settings; choose another"
                " --out, or delete it"
            )
        elif manifest:
            seconds = float(manifest["seconds"])
        if not problem and not (manifest and manifest["complete"]):
            _write_manifest(kept, folder, complete=False, seconds=seconds)
    problem = world.broadcast_object(problem)
    if problem:
        raise ValueError(problem)
    return seconds


def _made_by(identity: dict[str, Any]) -> dict[str, Any]:
    """Return the part of an identity that files share when more seeds are added."""
    return {k: v for k, v in identity.items() if k not in {"seeds", "num_images", "digest"}}


def _write_manifest(kept: KeptImages, folder: Path, *, complete: bool, seconds: float) -> None:
    document = {
        "identity": kept.identity,
        "nfe": kept.nfe,
        "complete": complete,
        "seconds": round(seconds, 3),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_bytes(folder / MANIFEST, json.dumps(document, indent=2).encode())


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder of samples, None if it has none."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def describe_snapshot(snapshot: Snapshot) -> dict[str, Any]:
    """Return what a result records of a snapshot."""
    return {
        "path": str(snapshot.path),
        "weights_sha256": snapshot.weights_sha256,
        "images_seen": snapshot.images_seen,
        "ema": snapshot.ema,
        "network": snapshot.network,
        "objective": to_json(snapshot.objective),
    }


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse `0-63,100` into seeds. Raises ValueError on anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or int(last or first) < int(first):
            raise ValueError(f"seeds {text!r} are not like 0-49999 or 0-9,20")
        seeds += range(int(first), int(last or first) + 1)
    return tuple(seeds)


def format_seeds(seeds: Sequence[int]) -> str:
    """Return the shortest text that parse_seeds reads back as these seeds."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
