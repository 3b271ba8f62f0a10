"""Analyses of images and noise that the papers show."""
