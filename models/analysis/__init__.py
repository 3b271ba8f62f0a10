"""Analyses of images and noise that the papers show.

spectrum.py  Spectra of images and noise at two resolutions (Figure 2 of RDM), with plots
"""
