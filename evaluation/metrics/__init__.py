"""Metrics: one file each, from features or statistics to a value."""
