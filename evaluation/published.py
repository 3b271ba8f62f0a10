"""Published values as data: what was measured, where it stands, and under which circumstances.

Of several rows that one protocol may reproduce, the one that fits a result is shown beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from evaluation.circumstances import Facts, differences, model_facts, sampling_facts
from models.rdm import presets as rdm
from models.rdm.edm_sampler import EdmSampling
from models.rdm.process import RelayProcess
from models.rdm.relay_sampler import RelaySampling
from models.wavediff import presets as wavediff
from models.wavediff.config import WaveDiffConfig


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a published table.

    Attributes:
        source: Paper and table.
        values: By metric and value name, e.g. `fid.distance`.
        facts: The circumstances (`evaluation.circumstances`), beyond those of the protocol.
    """

    source: str
    values: dict[str, float]
    facts: Facts = field(default_factory=dict)


def nearest(rows: Sequence[Published], ours: Facts, common: Facts) -> Published | None:
    """Return the row from whose circumstances ours differ least, the first of equals.

    Args:
        rows: The rows.
        ours: Facts of a result.
        common: Facts that all rows share, which a row may override.
    """
    return min(rows, key=lambda row: _distance(ours, common | row.facts), default=None)


def _distance(ours: Facts, theirs: Facts) -> tuple[int, float]:
    """Return how many facts differ and, of rows where as many do, by how much."""
    is_drawn = "sampler" in ours  # what a sampler lacks, it is without
    different = {
        name: value
        for name, value in theirs.items()
        if (name in ours or is_drawn) and ours.get(name) != value
    }
    numbers = [
        abs(ours[name] - value)
        for name, value in different.items()
        if isinstance(value, float) and isinstance(ours.get(name), float | int)
    ]
    return len(different), sum(numbers)


def deviations(ours: Facts, common: Facts, row: Published | None) -> list[str]:
    """Say in what a result departs from the circumstances of a row (or of all rows)."""
    return differences(ours, common | (row.facts if row else {}))


RDM = "Relay Diffusion (arXiv 2309.03350)"
STOCHASTICITY = {
    "imagenet256": {0.0: 5.65, 0.1: 5.44, 0.15: 5.31, 0.25: 5.48, 0.3: 5.91},
    "celebahq256": {0.0: 4.11, 0.1: 3.74, 0.15: 3.43, 0.25: 3.23, 0.3: 3.52},
}
"""Table 3: FID by eta, without the default 0.2, which is in the main tables."""


def rdm_imagenet256() -> tuple[Published, ...]:
    """Return RDM's rows on ImageNet 256 (docs/reference/rdm.md#12).

    Classes are drawn at random but in the row with class balance.
    """
    guided = _relay(rdm.IMAGENET_EDM, rdm.IMAGENET_RELAY_GUIDED, rdm.IMAGENET_PROCESS, "float16")
    plain = _relay(rdm.IMAGENET_EDM, rdm.IMAGENET_RELAY, rdm.IMAGENET_PROCESS, "float16")
    plain |= {"labels": "random"}
    main = (
        ("Table 2, RDM-G with class balance", guided, (1.87, 3.97, 278.75, 0.81, 0.59)),
        ("Table 2, RDM-G", guided | {"labels": "random"}, (1.99, 3.99, 260.45, 0.81, 0.58)),
        ("Tables 2 and 3, RDM", plain, (5.27, 4.39, 153.43, 0.75, 0.62)),
    )
    names = (
        "fid.distance", "sfid.distance", "is_chunks_biased_logits.score", "pr.precision",
        "pr.recall",
    )  # fmt: skip
    return (
        *(
            Published(source=f"{RDM}, {table}", values=dict(zip(names, row, strict=True)), facts=f)
            for table, f, row in main
        ),
        *_stochasticity("imagenet256", plain),
    )


def rdm_celebahq256() -> tuple[Published, ...]:
    """Return RDM's rows on CelebA-HQ 256 (docs/reference/rdm.md#12)."""
    facts = _relay(rdm.CELEBAHQ_EDM, rdm.CELEBAHQ_RELAY, rdm.CELEBAHQ_PROCESS, "float32")
    values = {"fid.distance": 3.15, "pr.precision": 0.77, "pr.recall": 0.55}
    main = Published(source=f"{RDM}, Tables 1 and 3", values=values, facts=facts)
    return (main, *_stochasticity("celebahq256", facts))


def _relay(
    stage1: EdmSampling, stage2: RelaySampling, process: RelayProcess, precision: str
) -> Facts:
    first = sampling_facts(stage1) | {"precision": precision}
    return (
        {f"stage 1 {name}": value for name, value in first.items()}
        | sampling_facts(stage2, process)
        | {"precision": precision, "resolution": 256, "device": "cuda"}
    )


def _stochasticity(dataset: str, facts: Facts) -> Iterator[Published]:
    for eta, fid in STOCHASTICITY[dataset].items():
        source, values = f"{RDM}, Table 3, eta {eta:g}", {"fid.distance": fid}
        yield Published(source=source, values=values, facts=facts | {"eta": eta})


WAVEDIFF = "WaveDiff (arXiv 2211.16152)"
LDDGAN = "reprinted by Latent Denoising Diffusion GAN"
RECALL = "pr_vgg16_stylegan.recall"


@dataclass(frozen=True)
class _Row:
    """FID and recall (None: not given) of a model."""

    model: WaveDiffConfig
    source: str
    fid: float
    recall: float | None = None


def _wavediff_rows() -> dict[str, tuple[_Row, ...]]:
    """Return the rows of WaveDiff's tables by data set (docs/reference/wavediff.md#9)."""
    celebahq = wavediff.wavediff_celebahq256()
    main, baseline = f"{WAVEDIFF}, main tables and README", f"{WAVEDIFF}, baseline DDGAN"
    return {
        "cifar10": (
            _Row(wavediff.wavediff_cifar10(), main, 4.01, 0.55),
            _Row(wavediff.ddgan_cifar10(), baseline, 3.75, 0.57),
        ),
        "stl10": (_Row(wavediff.wavediff_stl10(), main, 12.93, 0.41),),
        "celebahq256": (
            _Row(celebahq, main, 5.94, 0.37),
            _Row(wavediff.ddgan_celebahq256(), baseline, 7.64, 0.36),
            _Row(_without(celebahq, "frequency_pyramid"), _ablation("residual"), 6.25),
            _Row(_without(celebahq, "frequency_blocks"), _ablation("up/down blocks"), 6.23),
            _Row(_without(celebahq, "frequency_bottleneck"), _ablation("bottleneck"), 6.18),
            _Row(
                dataclasses.replace(celebahq, reconstruction_weight=0.0),
                _ablation("reconstruction term"), 6.55,
            ),
        ),
        "celebahq512": (
            _Row(wavediff.wavediff_celebahq512(), main, 6.40, 0.35),
            _Row(wavediff.ddgan_celebahq512(), baseline, 8.43, 0.33),
        ),
        "celebahq1024": (_Row(wavediff.wavediff_celebahq1024(), main, 5.98, 0.39),),
        "lsun_church": (
            _Row(wavediff.wavediff_lsun_church256(), main, 5.06, 0.40),
            _Row(wavediff.ddgan_lsun_church256(), f"{baseline}, {LDDGAN}", 5.25, 0.41),
        ),
    }  # fmt: skip


def _without(config: WaveDiffConfig, part: str) -> WaveDiffConfig:
    generator = dataclasses.replace(config.generator, **{part: False})  # type: ignore[arg-type]
    return dataclasses.replace(config, generator=generator)


def _ablation(part: str) -> str:
    return f"{WAVEDIFF}, ablation without the {part}, by a third-party summary"


def wavediff_fid(dataset: str) -> tuple[Published, ...]:
    """Return WaveDiff's rows of a data set, FID."""
    return tuple(
        Published(source=row.source, values={"fid.distance": row.fid}, facts=_facts(row.model))
        for row in _wavediff_rows()[dataset]
    )


def wavediff_recall(dataset: str) -> tuple[Published, ...]:
    """Return WaveDiff's rows of a data set, recall."""
    return tuple(
        Published(source=row.source, values={RECALL: row.recall}, facts=_facts(row.model))
        for row in _wavediff_rows()[dataset]
        if row.recall is not None
    )


def _facts(model: WaveDiffConfig) -> Facts:
    return model_facts(model) | {"resolution": model.resolution, "device": "cuda"}
