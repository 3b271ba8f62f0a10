"""Recipes: documented functions that return complete run configurations.

quickstart.py  Recipes of `bash quickstart.sh`
rdm.py         Recipes of Relay Diffusion
wavediff.py    Recipes of WaveDiff and DDGAN
"""

from __future__ import annotations

from collections.abc import Callable

from dist_train.config import RunConfig
from dist_train.recipes import quickstart, rdm, wavediff
from models.config_io import ConfigError, did_you_mean

Recipe = Callable[[], RunConfig]

RECIPES: dict[str, Recipe] = {
    recipe.__name__: recipe for recipe in (*quickstart.RECIPES, *rdm.RECIPES, *wavediff.RECIPES)
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name. Raises ConfigError, listing names, if there is none."""
    if name not in RECIPES:
        names = sorted(RECIPES)
        similar = did_you_mean(name, names) or f"; known are {', '.join(names)}"
        raise ConfigError(f"there is no recipe {name!r}{similar}")
    return RECIPES[name]
