"""Recipes: documented functions that return complete run configurations.

quickstart.py  Recipes of `bash quickstart.sh`
rdm.py         Recipes of Relay Diffusion
wavediff.py    Recipes of WaveDiff and DDGAN
"""

from __future__ import annotations

from collections.abc import Callable

from dist_train.config import RunConfig
from dist_train.recipes import quickstart, rdm, wavediff
from models.config_io import ConfigError

Recipe = Callable[[], RunConfig]

RECIPES: dict[str, Recipe] = {
    recipe.__name__: recipe for recipe in (*quickstart.RECIPES, *rdm.RECIPES, *wavediff.RECIPES)
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name. Raises ConfigError, listing all names, if there is none."""
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}; known are {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
