"""The file of published values: sources, our models, and the pages that give the values."""

from __future__ import annotations

import re

import pytest

from dist_train.recipes.registry import RECIPES
from evaluation.published import read_in, tables
from tests.paths import ROOT

PAGES = {name: (ROOT / f"docs/reference/{name}.md").read_text() for name in ("rdm", "wavediff")}
SECTIONS = {"rdm": 12, "wavediff": 9}


def numbers_of(page: str) -> set[float]:
    """Return the numbers of a page's section of published results."""
    number = SECTIONS[page]
    section = PAGES[page].split(f"\n## {number} ")[1].split(f"\n## {number + 1} ")[0]
    return {float(text) for text in re.findall(r"\d+(?:\.\d+)?", section)}


@pytest.mark.parametrize("name", tables())
def test_every_value_is_on_its_page_with_what_it_was_read_in(name: str) -> None:
    page = name.partition("_")[0]
    table = tables()[name]
    assert table.rows or table.notes, "what is not known is said"
    on_page = numbers_of(page)
    for row in table.rows:
        assert row.values, row
        assert set(row.read_in.split()) <= read_in().keys()
        for column, value in row.values.items():
            assert value in on_page, f"{row.method}: {column} {value} is not on the page"


@pytest.mark.parametrize("name", tables())
def test_our_models_are_recipes(name: str) -> None:
    for row in tables()[name].rows:
        assert not row.model or row.model.removesuffix("_random") in RECIPES


def test_rows_are_told_apart() -> None:
    for name, table in tables().items():
        rows = [(row.method, *row.at.values()) for row in table.rows]
        assert len(set(rows)) == len(rows), name
