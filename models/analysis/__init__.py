"""Analyses of images and noise that the papers show.

spectrum.py  Spectra of images and noise at two resolutions, the paper's Figure 2
"""
