"""Published values: the tables of published.toml, and under which circumstances rows were measured.

Of several rows that one protocol may reproduce, the one that fits a result is shown beside it.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from evaluation.circumstances import Facts, differences, model_facts, sampling_facts
from models.config_io import from_json
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
WAVEDIFF = "WaveDiff (arXiv 2211.16152)"
FILE = Path(__file__).with_suffix(".toml")
RECALL = "pr_vgg16_stylegan.recall"
COLUMNS = {
    "fid": "fid.distance",
    "sfid": "sfid.distance",
    "is": "is_chunks_biased_logits.score",
    "precision": "pr.precision",
    "recall": "pr.recall",
}
"""Values of results by the columns of RDM's tables; WaveDiff's recall is RECALL."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a published table, as it is printed.

    Attributes:
        method: Whose row it is.
        read_in: Keys of what it was read in, separated by spaces.
        values: Its values by column; what is not known is left out.
        model: The configuration of ours that it is of; "" for methods that are not ours.
        place: Where it stands, if not where its table does.
        at: What else tells rows apart: `eta`, `without`.
    """

    method: str
    read_in: str
    values: dict[str, float]
    model: str = ""
    place: str = ""
    at: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A published table or figure.

    Attributes:
        title: What it shows.
        place: Where it stands in its paper.
        rows: Its rows; none for figures whose numbers are not known.
        notes: What is known besides, and what is not.
    """

    title: str
    place: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@cache
def tables() -> dict[str, Table]:
    """Return all tables and figures by name, in the order of the file."""
    document = tomllib.loads(FILE.read_text())
    del document["read_in"]
    return {name: _table(name, entry) for name, entry in document.items()}


@cache
def read_in() -> dict[str, str]:
    """Return what values were read in, by the keys of `Row.read_in`."""
    return from_json(dict[str, str], tomllib.loads(FILE.read_text())["read_in"], "read_in")


def _table(name: str, entry: dict[str, Any]) -> Table:
    rows = [_with_values(row) for row in entry["rows"]]
    table: Table = from_json(Table, entry | {"rows": rows}, name)
    return table


def _with_values(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the file with its numbers as `values`."""
    numbers = {name: value for name, value in row.items() if isinstance(value, float | int)}
    others = {name: value for name, value in row.items() if name not in numbers}
    return others | {"values": numbers}


def rdm_imagenet256() -> tuple[Published, ...]:
    """Return RDM's rows on ImageNet 256 (docs/reference/rdm.md#12).

    Classes are drawn at random but in the row with class balance.
    """
    main = [row for row in tables()["rdm_table2"].rows if row.model]
    return tuple(_of_rdm(row) for row in (*reversed(main), *_stochasticity("rdm_imagenet256")))


def rdm_celebahq256() -> tuple[Published, ...]:
    """Return RDM's rows on CelebA-HQ 256 (docs/reference/rdm.md#12)."""
    main = [row for row in tables()["rdm_table1"].rows if row.model]
    return tuple(_of_rdm(row) for row in (*main, *_stochasticity("rdm_celebahq256")))


def _stochasticity(model: str) -> list[Row]:
    """Return Table 3's rows of a model, without the default eta, which is in the main tables."""
    rows = [row for row in tables()["rdm_table3"].rows if row.model == model]
    return [row for row in rows if row.at["eta"] != RelaySampling().eta]


def _of_rdm(row: Row) -> Published:
    facts, place = _relay_facts(row.model), row.place or "Table 3"
    if "eta" in row.at:
        facts, place = facts | {"eta": row.at["eta"]}, f"{place}, eta {row.at['eta']:g}"
    values = {COLUMNS[name]: value for name, value in row.values.items()}
    return Published(source=f"{RDM}, {place}", values=values, facts=facts)


def _relay_facts(model: str) -> Facts:
    """Return the facts of RDM's configurations, by the names in the file."""
    if model == "rdm_celebahq256":
        return _relay(rdm.CELEBAHQ_EDM, rdm.CELEBAHQ_RELAY, rdm.CELEBAHQ_PROCESS, "float32")
    guided = model.startswith("rdm_imagenet256_guided")
    stage2 = rdm.IMAGENET_RELAY_GUIDED if guided else rdm.IMAGENET_RELAY
    facts = _relay(rdm.IMAGENET_EDM, stage2, rdm.IMAGENET_PROCESS, "float16")
    return facts if model == "rdm_imagenet256_guided" else facts | {"labels": "random"}


def _relay(
    stage1: EdmSampling, stage2: RelaySampling, process: RelayProcess, precision: str
) -> Facts:
    first = sampling_facts(stage1) | {"precision": precision}
    return (
        {f"stage 1 {name}": value for name, value in first.items()}
        | sampling_facts(stage2, process)
        | {"precision": precision, "resolution": 256, "device": "cuda"}
    )


def wavediff_fid(dataset: str) -> tuple[Published, ...]:
    """Return WaveDiff's rows of a data set, FID (docs/reference/wavediff.md#9)."""
    return _of_wavediff(dataset, "fid", COLUMNS["fid"])


def wavediff_recall(dataset: str) -> tuple[Published, ...]:
    """Return WaveDiff's rows of a data set, recall (docs/reference/wavediff.md#9)."""
    return _of_wavediff(dataset, "recall", RECALL)


def _of_wavediff(dataset: str, column: str, metric: str) -> tuple[Published, ...]:
    table = tables()[f"wavediff_{dataset}"]
    ablated = [row for row in tables()["wavediff_ablation"].rows if "without" in row.at]
    rows = [*table.rows, *(ablated if dataset == "celebahq256" else [])]
    return tuple(
        Published(
            source=f"{WAVEDIFF}, {row.place or table.place}",
            values={metric: row.values[column]},
            facts=_facts(_model_of(row)),
        )
        for row in rows
        if row.model and column in row.values
    )


def _model_of(row: Row) -> WaveDiffConfig:
    config = wavediff.PRESETS[row.model]()
    part = row.at.get("without")
    if part is None:
        return config
    if part == "reconstruction":
        return dataclasses.replace(config, reconstruction_weight=0.0)
    generator = dataclasses.replace(config.generator, **{str(part): False})  # type: ignore[arg-type]
    return dataclasses.replace(config, generator=generator)


def _facts(model: WaveDiffConfig) -> Facts:
    return model_facts(model) | {"resolution": model.resolution, "device": "cuda"}
