"""Recipes: documented functions that return complete run configurations."""
