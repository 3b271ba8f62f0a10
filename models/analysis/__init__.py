"""Analyses of images and noise that the papers show.

figures.py   Matplotlib's figures as files, which replace only such figures
spectrum.py  Spectra of images and noise at two resolutions (Figure 2 of RDM), with plots
states.py    The states between noise and image of a sampler
"""
