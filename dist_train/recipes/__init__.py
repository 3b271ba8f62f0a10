"""Recipes: documented functions that return complete run configurations.

config_file.py  A run's settings: of a recipe, of a file (`--config`) and of the command line
images.py       Recipes for one's own images, at 64 to 512 pixels
quickstart.py   Recipes of `bash quickstart.sh`
rdm.py          Recipes of Relay Diffusion
registry.py     Recipes by name: the one of the function that returns it
wavediff.py     Recipes of WaveDiff and DDGAN
"""

from __future__ import annotations

# Importing a file registers its recipes.
from dist_train.recipes import images as images
from dist_train.recipes import quickstart as quickstart
from dist_train.recipes import rdm as rdm
from dist_train.recipes import wavediff as wavediff
from dist_train.recipes.config_file import resolve_config
from dist_train.recipes.registry import RECIPES, Recipe, find_recipe, recipe

__all__ = ["RECIPES", "Recipe", "find_recipe", "recipe", "resolve_config"]
