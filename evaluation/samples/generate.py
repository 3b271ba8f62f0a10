"""Samples from seeds: the same images on any number of ranks.

Batches are cut at fixed positions in the list of seeds. The last one is padded with the seeds that
would follow, and the extra images are dropped, so an image never depends on the rank that draws it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dist_train.runtime.rank_errors import PartError
from evaluation.detectors.base import allowed_tf32
from evaluation.detectors.passes import DEFAULT, Passes
from evaluation.digest import short_hash
from evaluation.image_sets.image_set import Labels
from evaluation.image_sets.seeds import format_seeds
from evaluation.overlap import ahead, cores_of_rank
from evaluation.samples.postprocess import QUANTISATIONS, PostProcess
from models.config_io import ConfigError, differences, from_json, to_json
from models.families import AnyObjective
from models.sample_rng import stream_seed
from models.sampler import Sampler, balanced_labels, sample
from models.snapshot import Snapshot, load_sampler, sampled_classes

MOST_BATCHES = 4
"""Batches of samples in memory that wait to be encoded and written."""

SHOWN = 3
"""Differences between samples that are shown."""

LabelPolicy = Literal["balanced", "random"]


@dataclass(frozen=True)
class SampleSpec:
    """Which samples are drawn.

    Attributes:
        seeds: One per image, in order.
        labels: `balanced` (class = seed mod classes) or `random` (a uniform draw from the seed).
        batch_size: Images per forward pass; part of the identity, as kernels may round by it.
        post: Post-processing of the samples.
    """

    seeds: tuple[int, ...]
    labels: LabelPolicy = "balanced"
    batch_size: int = DEFAULT
    post: PostProcess = field(default_factory=PostProcess)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must be non-empty and distinct, e.g. --seeds 0-49999")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be positive")

    def batches(self) -> list[range]:
        """Return the indices of each batch."""
        n, size = len(self.seeds), self.batch_size
        return [range(start, min(start + size, n)) for start in range(0, n, size)]

    def labels_of(self, seeds: Sequence[int], classes: Sequence[int]) -> Tensor | None:
        """Return each seed's one of these classes, int64, or None for an unconditional model."""
        if self.labels == "random":
            seeds = [stream_seed(0, "label", seed) for seed in seeds]
        return balanced_labels(seeds, classes)


def check_settings(objectives: Sequence[AnyObjective], spec: SampleSpec) -> None:
    """Check that a model's settings and those of its samples neither double nor miss each other.

    Args:
        objectives: Of the stages in order.
        spec: Which samples are drawn of them.

    Raises:
        ValueError: Images would be enhanced twice, or quantised by two rules, or classes are asked
            of an unconditional model.
    """
    enhance = getattr(getattr(objectives[-1], "sampling", None), "enhance", ())
    if enhance and spec.post.retouch != "none":
        raise ValueError(
            f"--retouch {spec.post.retouch} would enhance images that the model's"
            f" sampling.enhance={json.dumps(enhance)} has enhanced already; give --retouch none,"
            " or sampling.enhance=[]"
        )
    if enhance and spec.post.quantisation != "edm":
        raise ValueError(
            f"--quantisation {spec.post.quantisation} comes too late for sampling.enhance="
            f"{json.dumps(enhance)}, which works on 8-bit images; use --retouch with"
            " sampling.enhance=[] instead"
        )
    if spec.labels != "balanced" and not any(objective.label_dim for objective in objectives):
        raise ValueError(f"--labels {spec.labels} needs a model with classes; leave it out")


class GeneratedImages:
    """The samples of a spec as an image set; drawn on demand.

    Args:
        snapshots: The model, or a relay's stages in order.
        spec: Which samples.
        device: Where to sample.

    Attributes:
        classes: Classes that samples are drawn of; empty for unconditional models.
        seconds: Time that this process has spent on sampling.
        passes: How many samples are drawn at once.
    """

    manifest = None

    def __init__(
        self, snapshots: Sequence[Snapshot], spec: SampleSpec, device: torch.device | str = "cpu"
    ) -> None:
        self.snapshots, self.spec, self.device = snapshots, spec, torch.device(device)
        self._sampler: Sampler | None = None
        self.classes = sampled_classes(snapshots)
        self.seconds = 0.0
        self.passes = Passes("sampling")

    @property
    def sampler(self) -> Sampler:
        """The sampler, loaded when first needed."""
        if self._sampler is None:
            self._sampler = load_sampler(self.snapshots, self.device)
        return self._sampler

    @property
    def identity(self) -> dict[str, Any]:
        """The models' digests and every setting that the images depend on.

        TF32 is not in the digest, as it was not always recorded: who compares identities compares
        it beside that (`unlike`).
        """
        spec = self.spec
        document = {
            "kind": "generated",
            "models": [describe_snapshot(snapshot) for snapshot in self.snapshots],
            "num_images": len(self),
            "seeds": format_seeds(spec.seeds),
            "labels": spec.labels,
            "batch_size": spec.batch_size,
            "post": asdict(spec.post),
            "device": self.device.type,
        }
        if len(self.classes) < self.snapshots[-1].objective.label_dim:
            document["classes"] = list(self.classes)
        digest = short_hash(document | {"models": made_by(document)["models"]})
        return document | {"digest": digest, "tf32": self.tf32}

    def __len__(self) -> int:
        return len(self.spec.seeds)

    @property
    def tf32(self) -> dict[str, Any]:
        """Where the last stage's network may use TF32; `stages` has all, if they differ."""
        stages = [self._tf32_of(snapshot) for snapshot in self.snapshots]
        differ = any(stage != stages[-1] for stage in stages)
        return stages[-1] | ({"stages": stages} if differ else {})

    @staticmethod
    def _tf32_of(snapshot: Snapshot) -> dict[str, bool]:
        if snapshot.tf32 is None:
            return allowed_tf32()
        return dict.fromkeys(allowed_tf32(), snapshot.tf32)

    @property
    def resolution(self) -> int:
        """Edge of the images in pixels."""
        return self.snapshots[-1].objective.build().resolution

    @property
    def nfe(self) -> int:
        """Network evaluations per image, over all stages."""
        return sum(self.sampler.nfe.values())

    def labels(self, indices: Sequence[int]) -> Labels | None:
        """Return the classes of these indices, int64 [B], None for unconditional models."""
        return self.labels_of([self.spec.seeds[i] for i in indices])

    def name(self, index: int) -> str:
        """Return the name of a sample, its seed."""
        return f"{self.spec.seeds[index]:06d}"

    def labels_of(self, seeds: Sequence[int]) -> Labels | None:
        """Return the classes of samples by their seeds, as `labels` does."""
        labels = self.spec.labels_of(seeds, self.classes)
        return None if labels is None else labels.numpy()

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the images of these indices, uint8 [B, 3, H, W] on the CPU, post-processed."""
        return self.spec.post.apply(self.draw(indices))

    def batches(self, todo: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Yield `batch(indices)` of each of these batches; others are drawn meanwhile."""
        return ahead(self.spec.post.apply, map(self.draw, todo), threads=post_threads())

    def draw(self, indices: Sequence[int]) -> Tensor:
        """Return the quantised samples of these indices, uint8 [B, 3, H, W] on the CPU.

        Raises:
            ValueError: Some are not finite: as pixels they would be black, and be evaluated.
        """
        started = time.monotonic()
        seeds = [self.spec.seeds[i] for i in indices]
        missing = self.spec.batch_size - len(seeds)
        filled = seeds + [seeds[-1] + 1 + i for i in range(missing)]
        labels = self.spec.labels_of(filled, self.classes)
        finite: list[Tensor] = []

        def to_uint8(samples: Tensor) -> Tensor:
            finite.append(samples.isfinite().all())  # read after the copy, which waits anyway
            return QUANTISATIONS[self.spec.post.quantisation](samples)

        def draw(rows: slice) -> Tensor:
            some = None if labels is None else labels[rows]
            return sample(self.sampler, filled[rows], some, to_uint8)

        parts = self.passes.run(draw, len(filled))
        images = torch.cat(parts)[: len(seeds)].cpu()
        if not all(finite):
            cause = f"{self.snapshots[-1].path} draws samples that are not finite"
            raise PartError(
                f"{cause} (seeds {seeds[0]} to {seeds[-1]}): the model diverged, or its sampler's"
                " settings let it; take an earlier snapshot, or other settings",
                cause,
            )
        self.seconds += time.monotonic() - started
        return images


def post_threads() -> int:
    """Return how many batches are post-processed and written at once: enough for lossy files."""
    return min(cores_of_rank(), MOST_BATCHES)


def made_by(identity: dict[str, Any]) -> dict[str, Any]:
    """Return the part of an identity that stays when seeds are added or models are moved."""
    document = {k: v for k, v in identity.items() if k not in {"seeds", "num_images", "digest"}}
    models = [
        {k: v for k, v in model.items() if k != "path"}
        | {"objective": _under_present_names(model["objective"])}
        for model in identity["models"]
    ]
    return document | {"models": models}


def unlike(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Say in what samples of two identities differ besides seeds; "" if they belong together.

    An identity of an older version does not say where TF32 was allowed: that is not compared.
    """
    recorded = bool(theirs.get("tf32") and ours.get("tf32"))
    both = []
    for identity in (theirs, ours):
        facts = made_by(dict(identity))
        models = facts.pop("models")
        stages = {f"stage {number}": model for number, model in enumerate(models, start=1)}
        tf32 = {"TF32": facts.pop("tf32", None)} if recorded else {}
        facts.pop("tf32", None)
        both.append(facts | (models[0] if len(models) == 1 else stages) | tf32)
    found = differences(both[0], both[1])
    said = [f"{name} is {was}, not {now}" for name, (was, now) in found.items()]
    more = [f"and {len(said) - SHOWN} more"] if len(said) > SHOWN else []
    return "; ".join([*said[:SHOWN], *more])


def _under_present_names(objective: Any) -> Any:
    """Return an objective's settings as they are written now; older versions had other names."""
    try:
        return to_json(from_json(AnyObjective, objective, "objective"))
    except ConfigError:
        return objective


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
