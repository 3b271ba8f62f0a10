"""Golden sets of the same layout as the public one, but of other numbers, are read as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics.precision_recall import adm_distance, half_precision_recall
from tests.conftest import COMMITTED_GOLDENS
from tests.evaluation import test_goldens
from tests.evaluation.golden_arrays import Goldens
from tests.evaluation.half_precision import adm_ranges


def other_set(directory: Path, duplicates: str) -> Goldens:
    """Write a set with other features, sizes and salt, whose README repeats rows so."""
    generator = np.random.default_rng(1)
    gen, ref = generator.normal(size=(90, 16)), generator.normal(size=(110, 16))
    np.savez(directory / "metrics_inputs.npz", gen=gen.astype("f4"), ref=ref.astype("f4"))
    text = (
        f"Recipe salt: `other-7`.\nSets: `main`; `dup` = gen followed by its {duplicates}; `small`"
    )
    (directory / "README.md").write_text(text)
    return Goldens(directory)


@pytest.mark.parametrize(
    ("text", "rows", "times"),
    [
        ("first 50 rows twice", 50, 2),
        ("first 37 rows three times", 37, 3),
        ("first 8 rows 4 times", 8, 4),
        ("first 20 rows", 20, 1),
        ("first 20 rows once", 20, 1),
    ],
)
def test_duplicates_are_those_of_the_readme(
    tmp_path: Path, text: str, rows: int, times: int
) -> None:
    goldens = other_set(tmp_path, text)
    gen, _ = goldens.pair("main")
    repeated, _ = goldens.pair("dup")
    np.testing.assert_array_equal(repeated[:90], gen)
    np.testing.assert_array_equal(repeated[90:], np.concatenate([gen[:rows]] * times))


def test_a_readme_without_duplicates_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"README\.md does not say which rows"):
        other_set(tmp_path, "last 5 rows").pair("dup")


def test_adm_precision_of_another_set_may_move_only_at_the_surfaces(tmp_path: Path) -> None:
    goldens = other_set(tmp_path, "first 9 rows twice")
    gen, ref = goldens.pair("dup")
    ours = np.array(half_precision_recall(gen, ref, 3, adm_distance))
    test_goldens.check_adm_precision(goldens, ours, case="dup", k="3")
    for shift in (-0.1, 0.1):
        with pytest.raises(AssertionError):
            test_goldens.check_adm_precision(goldens, ours + shift, case="dup", k="3")


@pytest.mark.parametrize("case", ["main", "dup", "small"])
def test_adm_ranges_hold_the_official_values_and_are_narrow(case: str) -> None:
    goldens = Goldens(COMMITTED_GOLDENS / "evaluation")
    ranges = adm_ranges(*goldens.pair(case), 3)
    official = goldens.get("metrics_expected_adm.npz", f"pr_{case}_k3_adm")
    for (least, most), value in zip(ranges, official, strict=True):
        assert least - 1e-6 <= value <= most + 1e-6
        assert most - least < 0.04
