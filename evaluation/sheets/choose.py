"""Which images stand where on a sheet: neighbours, realism, classes, equal seeds, whole sets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dist_train.runtime.world import World
from evaluation.image_sets.image_set import ImageSet, PackedImages
from evaluation.image_sets.seeds import parse_seeds
from evaluation.metrics.nearest_neighbours import neighbours
from evaluation.metrics.realism import realism
from evaluation.metrics.statistics import FeatureSet, stratified
from evaluation.sheets.sheet import Cell, Layout


def neighbour_rows(
    samples: FeatureSet, reference: FeatureSet, tap: str, rows: int, columns: int, world: World
) -> Layout:
    """Return samples, of all parts of their set, each beside its nearest reference images.

    Args:
        samples: Features of the samples, set 0.
        reference: Features of the reference, set 1.
        tap: The tap whose distances count.
        rows: Samples.
        columns: Images in a row, the sample included.
        world: The ranks; each computes the few distances that this takes.
    """
    chosen = stratified(len(samples.selected), rows)
    count = min(columns - 1, len(reference.selected))
    if count < 1:
        raise ValueError(f"--columns={columns} leaves no place for neighbours; give at least 2")
    distances, indices = neighbours(
        samples.rows(tap)[chosen], reference.rows(tap), count, world.device
    )
    cells = [
        [Cell(0, samples.selected[row])]
        + [
            Cell(1, reference.selected[index], {"distance": float(distance)})
            for distance, index in zip(*near, strict=True)
        ]
        for row, *near in zip(chosen, distances, indices.tolist(), strict=True)
    ]
    return Layout("neighbours", cells, [{} for _ in cells], set_apart=True)


def realism_rows(
    samples: FeatureSet, reference: FeatureSet, tap: str, rows: int, columns: int, world: World
) -> Layout:
    """Return the most realistic samples, best first, above the least realistic ones, worst last.

    Args:
        samples: Features of the samples, set 0.
        reference: Features of the reference, set 1.
        tap: The tap whose distances count.
        rows: Rows in all, at least 2: half of them are the best.
        columns: Samples in a row.
        world: The ranks, which share the work.
    """
    values, balls = realism(samples.rows(tap), reference.rows(tap), world=world)
    order = np.argsort(-values, kind="stable")
    each = min(max(rows // 2, 1) * columns, max(len(order) // 2, 1))
    chosen = [order[:each].tolist(), order[len(order) - each :].tolist()]
    cells, notes = [], []
    for part, name in zip(chosen, ("best", "worst"), strict=True):
        for start in range(0, len(part), columns):
            cells.append(
                [
                    Cell(
                        0,
                        samples.selected[row],
                        {
                            # JSON has no infinity; null: it equals a reference image
                            "realism": float(values[row]) if np.isfinite(values[row]) else None,
                            "reference_index": reference.selected[int(balls[row])],
                        },
                    )
                    for row in part[start : start + columns]
                ]
            )
            notes.append({"part": name})
    return Layout("realism", cells, notes, parts=[len(cells) // 2])


def class_rows(images: ImageSet, classes: Sequence[int], rows: int, columns: int) -> Layout:
    """Return the first images of each class, a class in a row.

    Args:
        images: Set 0, with classes.
        classes: The classes; empty takes the first `rows` of those that have images.
        rows: Classes, where none are named.
        columns: Images in a row.

    Raises:
        ValueError: The set has no classes, or none of those.
    """
    labels = images.labels(range(len(images)))
    if labels is None:
        raise ValueError(
            "the images have no classes; give samples of a conditional model, a labelled set, or"
            " subdirectories that are classes"
        )
    present = np.unique(labels).tolist()
    if missing := [label for label in classes if label not in present]:
        raise ValueError(
            f"class {missing[0]} has no images; the classes are {present[0]}..{present[-1]}"
            f" ({len(present)} of them)"
        )
    shown = list(classes) or present[:rows]
    cells = [[Cell(0, i) for i in _first_of(labels, label, columns)] for label in shown]
    return Layout("classes", cells, [{"class": label} for label in shown])


def _first_of(labels: NDArray[np.int64], label: int, count: int) -> list[int]:
    found: list[int] = np.flatnonzero(labels == label)[:count].tolist()
    return found


def set_rows(sets: Sequence[ImageSet], classes: Sequence[int], rows: int, columns: int) -> Layout:
    """Return sets one below the other: real images, an untrained model's, a trained one's, say.

    Args:
        sets: In this order; of those that have classes, a column shows one class.
        classes: The classes; empty takes those of all such sets, over and over.
        rows: Rows of the last set; the others have one.
        columns: Images in a row.

    Raises:
        ValueError: The sets that have classes have none in common, or lack one of `classes`.
    """
    labels = [images.labels(range(len(images))) for images in sets]
    known = [set(found.tolist()) for found in labels if found is not None]
    common = sorted(set.intersection(*known)) if known else []
    if missing := [label for label in classes if label not in common]:
        raise ValueError(f"class {missing[0]} has no images in one of the sets; leave it out")
    if known and not common:
        raise ValueError("the sets have no class in common; show them on sheets of their own")
    shown = list(classes) or common
    cells: list[list[Cell]] = []
    for number, (images, found) in enumerate(zip(sets, labels, strict=True)):
        count = rows if number == len(sets) - 1 else 1
        if found is None:
            chosen = stratified(len(images), count * columns)
        else:
            chosen = _by_column(found, [shown[k % len(shown)] for k in range(columns)], count)
        cells += [
            [Cell(number, index) for index in chosen[start : start + columns]]
            for start in range(0, len(chosen), columns)
        ]
    notes = [{"set": row[0].source} for row in cells]
    return Layout("sets", cells, notes, parts=range(1, len(sets)))


def _by_column(labels: NDArray[np.int64], columns: Sequence[int], rows: int) -> list[int]:
    """Return rows of images, column k of class `columns[k]`: each once if there are enough."""
    often = {label: columns.count(label) for label in columns}
    chosen = {
        label: itertools.cycle(_spread(np.flatnonzero(labels == label), rows * count))
        for label, count in often.items()
    }
    return [next(chosen[label]) for _ in range(rows) for label in columns]


def _spread(indices: NDArray[np.int64], count: int) -> list[int]:
    chosen: list[int] = indices[stratified(len(indices), count)].tolist()
    return chosen


def seed_rows(sets: Sequence[ImageSet], rows: int) -> Layout:
    """Return the samples of several models, one model in a column and one seed in a row.

    Args:
        sets: Samples by `relaywave eval sample`, or other images whose names (without directory and
            extension) are equal.
        rows: Seeds: the first that all sets have.

    Raises:
        ValueError: They have none in common.
    """
    by_seed = [{name: i for i, name in enumerate(sample_names(images))} for images in sets]
    common = [seed for seed in by_seed[0] if all(seed in other for other in by_seed[1:])]
    if not common:
        examples = " and ".join(next(iter(seeds)) for seeds in by_seed[:2])
        raise ValueError(
            f"the sets have no seed in common (their first images are {examples}); draw the same"
            " --seeds with each model"
        )
    shown = common[:rows]
    cells = [[Cell(n, seeds[seed]) for n, seeds in enumerate(by_seed)] for seed in shown]
    return Layout("seeds", cells, [{"seed": seed} for seed in shown])


def sample_names(images: ImageSet) -> list[str]:
    """Return what samples are called: their seeds, or files' names without the extension."""
    if isinstance(images, PackedImages) and images.manifest is not None:
        return [f"{seed:06d}" for seed in parse_seeds(images.manifest["identity"]["seeds"])]
    names = map(images.name, range(len(images)))
    return [name.rpartition("/")[2].partition(".")[0] for name in names]
