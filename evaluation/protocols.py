"""Evaluation protocols as named objects: how published numbers were made.

A protocol fixes everything but the model and the reference file: samples, seeds, retouch, codec,
detector, preprocessing, metrics (docs/reference/evaluation.md#6). Each faithful one has a clean
variant: PNG, no retouch, TF1 resizing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from evaluation.samples.generate import SampleSpec
from evaluation.samples.postprocess import PostProcess
from models.config_io import did_you_mean


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
        published: Values in the paper by metric and value name, e.g. `fid.distance`.
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
    published: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def seeds(self, repeat: int = 0) -> tuple[int, ...]:
        """Return the seeds of the `repeat`-th range."""
        start = self.first_seed + repeat * self.num_samples
        return tuple(range(start, start + self.num_samples))

    def clean(self) -> Protocol:
        """Return the variant without retouch or lossy files, with TF1 resizing."""
        same_resizing = self.preprocessing == "tf1"
        return dataclasses.replace(
            self,
            name=f"{self.name}_clean",
            reference=self.reference if same_resizing else "the training images, TF1 resizing",
            preprocessing="tf1",
            post=PostProcess(),
            note=f"{self.name} as PNG, not retouched, TF1 resizing: measures the model alone",
        )


ADM_METRICS = ("fd:pool", "fd:spatial", "is_chunks:logits_unbiased", "pr_adm:pool")
RDM_METRICS = ("fd:pool", "fd:spatial", "is_chunks:logits", "pr:pool")
STYLEGAN_METRICS = ("fd_biased:pool", "is:logits_unbiased", "kid_subsets:pool")
VGG_RECALL = ("pr_stylegan:features",)


def _wavediff(dataset: str, fid: float, recall: float) -> list[Protocol]:
    """Return WaveDiff's FID protocol of a data set and its recall protocol (another detector)."""
    faithful = Protocol(
        name=f"wavediff_{dataset}",
        reference=f"shipped {dataset} *_stat.npy: training images, flipped at random, as JPEG",
        preprocessing="pytorch_fid",
        post=PostProcess(codec="jpeg"),
        published={"fid.distance": fid},
        note="samples pass through JPEG (Pillow defaults), as in the official script",
    )
    recall_protocol = Protocol(
        name=f"wavediff_{dataset}_recall",
        reference=f"up to 200,000 {dataset} training images, VGG16 features",
        num_features=200_000,
        detector="vgg16",
        preprocessing="raw",
        metrics=VGG_RECALL,
        published={"pr_vgg16_stylegan.recall": recall},
        note="StyleGAN2-ADA pr50k3_full; the authors' code for it is not public",
    )
    return [faithful, recall_protocol]


_FAITHFUL = [
    Protocol(
        name="rdm_imagenet256",
        first_seed=10_000,
        per_class=50,
        reference="all ImageNet training images, centre crop and Lanczos to 256 (EDM-style zip)",
        metrics=RDM_METRICS,
        post=PostProcess(retouch="rdm_imagenet"),
        published={
            "fid.distance": 1.87,
            "sfid.distance": 3.97,
            "is_chunks_biased_logits.score": 278.75,
            "pr.precision": 0.81,
            "pr.recall": 0.59,
        },
        note="precision and recall against 10,000 reference images; brightness x 1.06",
    ),
    Protocol(
        name="rdm_celebahq256",
        num_samples=30_000,
        first_seed=80_000,
        reference="all 30,000 CelebA-HQ images at 256",
        num_features=30_000,
        metrics=("fd:pool", "pr:pool"),
        post=PostProcess(retouch="rdm_celebahq"),
        published={"fid.distance": 3.15, "pr.precision": 0.77, "pr.recall": 0.55},
        note="contrast x 0.9, brightness x 1.05, colour x 0.99",
    ),
    *_wavediff("cifar10", 4.01, 0.55),
    *_wavediff("stl10", 12.93, 0.41),
    *_wavediff("celebahq256", 5.94, 0.37),
    *_wavediff("celebahq512", 6.40, 0.35),
    *_wavediff("celebahq1024", 5.98, 0.39),
    *_wavediff("lsun_church", 5.06, 0.40),
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
PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        *_FAITHFUL,
        *(protocol.clean() for protocol in _FAITHFUL if protocol.detector == "inception"),
        *_TOOLS,
    )
}


def find_protocol(name: str) -> Protocol:
    """Return a protocol by name. Raises ValueError, listing the known ones."""
    if name not in PROTOCOLS:
        similar = did_you_mean(name, [*PROTOCOLS])
        raise ValueError(f"protocol {name!r} is not one of {', '.join(PROTOCOLS)}{similar}")
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
    if protocol.published:
        values = ", ".join(f"{name} {value:g}" for name, value in protocol.published.items())
        lines.append(f"    published: {values}")
    return "\n".join(lines)


def record_protocol(
    protocol: Protocol, preprocessing: str, spec: SampleSpec | None, num_images: int
) -> dict[str, Any]:
    """Return what a result records of its protocol: all settings, and the deviations from them.

    Args:
        protocol: The protocol.
        preprocessing: Of the detector.
        spec: Which samples were drawn, None if they were not drawn here.
        num_images: How many images were evaluated.
    """
    settings = asdict(protocol)
    settings["pipeline"] = settings.pop("preprocessing")  # the key that result files have
    return settings | {"deviations": deviations(protocol, preprocessing, spec, num_images)}


def deviations(
    protocol: Protocol, preprocessing: str, spec: SampleSpec | None, num_images: int
) -> list[str]:
    """Say in what an evaluation departs from its protocol; arguments as `record_protocol`."""
    facts: list[tuple[str, object, object]] = [
        ("number of images", num_images, protocol.num_samples),
        ("preprocessing", preprocessing, protocol.preprocessing),
    ]
    if spec is None:
        return [
            *_differences(facts),
            "the images were not drawn here: seeds, labels and retouch are not checked",
        ]
    starts = [protocol.seeds(repeat)[0] for repeat in range(protocol.repeats)]
    first = spec.seeds[0]
    facts.append(("first seed", first, first if first in starts else starts[0]))
    if protocol.per_class:
        facts.append(("labels", spec.labels, "balanced"))
    post, expected = asdict(spec.post), asdict(protocol.post)
    facts += [(name, value, expected[name]) for name, value in post.items()]
    return _differences(facts)


def _differences(facts: Sequence[tuple[str, object, object]]) -> list[str]:
    return [f"{what} is {ours}, not {theirs}" for what, ours, theirs in facts if ours != theirs]
