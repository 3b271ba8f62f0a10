"""Evaluation protocols as named objects: how published numbers were made.

A protocol fixes everything but the model and the reference file: samples, seeds, retouch, codec,
detector, preprocessing, metrics (docs/reference/evaluation.md#6). Each faithful one has a clean
variant: PNG, no retouch, TF1 resizing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from evaluation import published
from evaluation.circumstances import PUBLISHED_WEIGHTS, Facts, circumstances, post_facts
from evaluation.image_sets.seeds import format_seeds
from evaluation.metrics.registry import METRICS, MetricRequest
from evaluation.published import Published
from evaluation.reference.prepared import Preparation
from evaluation.samples.postprocess import PostProcess
from models.plugins import Registry


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a number is made.

    Attributes:
        name: Name on the command line.
        num_samples: Images that are generated.
        first_seed: Seeds are first_seed .. first_seed + num_samples - 1.
        repeats: Disjoint seed ranges that are evaluated one after another (EDM: 3).
        per_class: Images of each class with balanced labels, 0 for unconditional models.
        reference: What the reference statistics are made of.
        num_features: Reference images that precision and recall use.
        detector: Name of the detector.
        preprocessing: Its preprocessing.
        metrics: What is computed, as `kind:tap`.
        post: Quantisation, retouch and codec.
        published: Rows of published tables, the main one first.
        reference_facts: What of the reference's circumstances is known.
        note: Anything else to know.
    """

    name: str
    num_samples: int = 50_000
    first_seed: int = 0
    repeats: int = 1
    per_class: int = 0
    reference: str
    num_features: int = 10_000
    detector: str = "inception"
    preprocessing: str = "tf1"
    metrics: tuple[str, ...] = ("fd:pool",)
    post: PostProcess = field(default_factory=PostProcess)
    published: tuple[Published, ...] = ()
    reference_facts: Facts = field(default_factory=dict)
    note: str = ""

    def seeds(self, repeat: int = 0) -> tuple[int, ...]:
        """Return the seeds of the `repeat`-th range."""
        start = self.first_seed + repeat * self.num_samples
        return tuple(range(start, start + self.num_samples))

    @property
    def resolution(self) -> int | None:
        """Edge of its images in pixels, None where the protocol is a tool's."""
        return next((row.facts["resolution"] for row in self.published), None)

    @property
    def preparation(self) -> Preparation:
        """What happens to the images of its reference before the detector sees them."""
        facts = self.reference_facts
        return Preparation(
            hflip=facts.get("hflip of the reference", False),
            codec=facts.get("codec of the reference", "png"),
        )

    @property
    def reference_taps(self) -> tuple[str, ...]:
        """Taps whose statistics its metrics take of a reference, in order."""
        pairs = (text.partition(":") for text in self.metrics)
        return tuple(
            dict.fromkeys(tap for kind, _, tap in pairs if METRICS[kind].reference != "none")
        )

    def facts(self, seeds: str = "") -> Facts:
        """Return the circumstances of all its published values.

        Args:
            seeds: Those of a result, as text: of several repeats, its own is meant.
        """
        ranges = [format_seeds(self.seeds(repeat)) for repeat in range(self.repeats)]
        facts: Facts = {
            "number of images": self.num_samples,
            "seeds": seeds if seeds in ranges else ranges[0],
            "classes": self.num_samples // self.per_class if self.per_class else 0,
        }
        if self.per_class:
            facts["labels"] = "balanced"
        facts |= post_facts(self.post) | self.reference_facts
        facts |= {"detector": self.detector, "preprocessing": self.preprocessing}
        if any(METRICS[text.partition(":")[0]].reference == "features" for text in self.metrics):
            facts["features of the reference"] = self.num_features
        return facts | {"weights of the detector": PUBLISHED_WEIGHTS}

    def clean(self) -> Protocol:
        """Return the variant without retouch or lossy files, with TF1 resizing.

        Beside its values stand those of the paper, and in what it deviates from them on purpose.
        """
        same_resizing = self.preprocessing == "tf1"
        plain = {"codec of the reference": "png", "hflip of the reference": False}
        ours = self.facts()
        rows = [dataclasses.replace(r, facts=ours | r.facts) for r in self.published]
        return dataclasses.replace(
            self,
            name=f"{self.name}_clean",
            reference=self.reference if same_resizing else "the training images, TF1 resizing",
            reference_facts=self.reference_facts | plain if self.reference_facts else {},
            preprocessing="tf1",
            post=PostProcess(),
            published=tuple(rows),
            note=f"{self.name} as PNG, not retouched, TF1 resizing: measures the model alone",
        )


ADM_METRICS = ("fd:pool", "fd:spatial", "is_chunks:logits_unbiased", "pr_adm:pool")
RDM_METRICS = ("fd:pool", "fd:spatial", "is_chunks:logits", "pr:pool")
STYLEGAN_METRICS = ("fd_biased:pool", "is:logits_unbiased", "kid_subsets:pool")
VGG_RECALL = ("pr_stylegan:features",)
MOST_VGG_FEATURES = 200_000


def _wavediff(dataset: str, num_images: int | None) -> list[Protocol]:
    """Return WaveDiff's FID protocol of a data set and its recall protocol (another detector).

    Args:
        dataset: Its name.
        num_images: Images of the training set that statistics are of, None where not known.
    """
    images = {"images of the reference": num_images} if num_images else {}
    faithful = Protocol(
        name=f"wavediff_{dataset}",
        reference=f"shipped {dataset} *_stat.npy: training images, flipped at random, as JPEG",
        reference_facts={
            **images, "codec of the reference": "jpeg", "hflip of the reference": True
        },
        preprocessing="pytorch_fid",
        post=PostProcess(codec="jpeg"),
        published=published.wavediff_fid(dataset),
        note="samples pass through JPEG (Pillow defaults), as in the official script",
    )  # fmt: skip
    recall_protocol = Protocol(
        name=f"wavediff_{dataset}_recall",
        reference=f"up to 200,000 {dataset} training images, VGG16 features",
        reference_facts={**images, "hflip of the reference": False},
        num_features=min(num_images or MOST_VGG_FEATURES, MOST_VGG_FEATURES),
        detector="vgg16",
        preprocessing="raw",
        metrics=VGG_RECALL,
        published=published.wavediff_recall(dataset),
        note="StyleGAN2-ADA pr50k3_full; the authors' code for it is not public",
    )
    return [faithful, recall_protocol]


_FAITHFUL = [
    Protocol(
        name="rdm_imagenet256",
        first_seed=10_000,
        per_class=50,
        reference="all ImageNet training images, centre crop and Lanczos to 256 (EDM-style zip)",
        reference_facts={"images of the reference": 1_281_167, "hflip of the reference": False},
        metrics=RDM_METRICS,
        post=PostProcess(retouch="rdm_imagenet"),
        published=published.rdm_imagenet256(),
        note="precision and recall against 10,000 reference images; brightness x 1.06",
    ),
    Protocol(
        name="rdm_celebahq256",
        num_samples=30_000,
        first_seed=80_000,
        reference="all 30,000 CelebA-HQ images at 256",
        reference_facts={"images of the reference": 30_000, "hflip of the reference": False},
        num_features=30_000,
        metrics=("fd:pool", "pr:pool"),
        post=PostProcess(retouch="rdm_celebahq"),
        published=published.rdm_celebahq256(),
        note="contrast x 0.9, brightness x 1.05, colour x 0.99",
    ),
    *_wavediff("cifar10", 50_000),
    *_wavediff("stl10", 100_000),
    *_wavediff("celebahq256", None),
    *_wavediff("celebahq512", None),
    *_wavediff("celebahq1024", None),
    *_wavediff("lsun_church", None),
]
_TOOLS = [
    Protocol(
        name="adm",
        reference="ADM reference batch (moments of the training set, 10,000 images for P/R)",
        metrics=ADM_METRICS,
        post=PostProcess(quantisation="adm"),
    ),
    Protocol(
        name="edm",
        repeats=3,
        reference="EDM fid-refs .npz of the training set",
        note="EDM papers report the minimum of three seed ranges; all three are evaluated",
    ),
    Protocol(
        name="stylegan",
        reference="training images; biased covariances",
        metrics=STYLEGAN_METRICS,
    ),
    Protocol(name="clean_fid", reference="clean-fid statistics", preprocessing="clean"),
]
PROTOCOLS: Registry[Protocol] = Registry("protocol", Protocol, {
    protocol.name: protocol
    for protocol in (
        *_FAITHFUL,
        *(protocol.clean() for protocol in _FAITHFUL if protocol.detector == "inception"),
        *_TOOLS,
    )
})  # fmt: skip


def find_protocol(name: str) -> Protocol:
    """Return a protocol by name. Raises ValueError, listing the known ones."""
    if name not in PROTOCOLS:
        raise ValueError(PROTOCOLS.unknown(name))
    return PROTOCOLS[name]


def describe_protocol(protocol: Protocol) -> str:
    """Return a protocol's settings and published values as a few lines of text."""
    post = protocol.post
    retouch = "" if post.retouch == "none" else f", retouch {post.retouch}"
    seeds = f"seeds {protocol.first_seed}-{protocol.first_seed + protocol.num_samples - 1}"
    lines = [
        f"{protocol.name}: {protocol.num_samples} samples ({seeds}), {post.codec}{retouch};"
        f" {protocol.detector}/{protocol.preprocessing}: {', '.join(protocol.metrics)}",
        f"    reference: {protocol.reference}",
    ]
    for row in protocol.published:
        values = ", ".join(f"{name} {value:g}" for name, value in row.values.items())
        lines.append(f"    published: {values} ({row.source})")
    return "\n".join(lines)


def record_protocol(
    protocol: Protocol, result: Mapping[str, Any], metrics: Collection[MetricRequest]
) -> dict[str, Any]:
    """Return what a result records of its protocol.

    That is all its settings, the published row that fits the result or is nearest to it, and every
    deviation from the row's circumstances.

    Args:
        protocol: The protocol.
        result: The result, before its metrics are computed.
        metrics: What is computed.
    """
    settings = asdict(dataclasses.replace(protocol, published=()))
    settings["pipeline"] = settings.pop("preprocessing")  # the key that result files have
    ours = circumstances(result)
    common = protocol.facts(ours.get("seeds", ""))
    row = published.nearest(protocol.published, ours, common)
    left_out = _left_out(protocol, result["detector"]["name"], metrics)
    return settings | {
        "published": row.values if row else {},
        "source": row.source if row else "",
        "circumstances": common | (row.facts if row else {}),
        "deviations": [*published.deviations(ours, common, row), *left_out],
    }


def _left_out(protocol: Protocol, detector: str, metrics: Collection[MetricRequest]) -> list[str]:
    """Name the protocol's metrics that are not computed."""
    computed = {f"{metric.kind}:{metric.tap}" for metric in metrics}
    if detector != protocol.detector:
        computed = set()
    missing = [text for text in protocol.metrics if text not in computed]
    return [f"metrics left out: {', '.join(missing)}"] if missing else []
