"""Recipes by name: the one of the function that returns it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

from dist_train.config import RunConfig
from models.config_io import ConfigError, did_you_mean
from models.plugins import Registry, imported

Recipe = Callable[[], RunConfig]

RECIPES: Registry[Recipe] = Registry("recipe", Callable)


def recipe(function: Recipe) -> Recipe:
    """Register a recipe under its function's name.

    What it returns gets that name as `RunConfig.recipe`, and what was imported for it (--import) as
    `RunConfig.imports`.
    """
    name = function.__name__

    @functools.wraps(function)
    def named() -> RunConfig:
        return replace(function(), recipe=name, imports=imported())

    return RECIPES.register(name, named)


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name. Raises ConfigError, listing names, if there is none."""
    if name not in RECIPES:
        names = sorted(RECIPES)
        similar = did_you_mean(name, names) or f"; known are {', '.join(names)}"
        raise ConfigError(f"there is no recipe {name!r}{similar}")
    return RECIPES[name]
