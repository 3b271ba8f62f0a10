"""Detectors: networks whose features are compared, with their preprocessing and weights."""
