"""Conversion of official checkpoints, which are read without executing anything in them.

pickle_reader.py    Reads foreign pickles without letting them run anything
rdm.py              Converts official RDM and EDM checkpoints to snapshots, without executing wh
rdm_files.py        Reads the official checkpoints: pickled modules with source code
wavediff.py         Official WaveDiff and DDGAN checkpoints to snapshots
wavediff_files.py   Settings and weight files of the official repository
wavediff_shapes.py  What the shapes of a generator's weights tell about its configuration
"""
