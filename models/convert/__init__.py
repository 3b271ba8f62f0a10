"""Conversion of official checkpoints, read without executing anything in them; export of graphs.

export.py           Snapshots as graphs that run without relaywave: ONNX and torch.export
pickle_reader.py    Reads foreign pickles through an allow-list of harmless stand-ins
rdm.py              Official RDM and EDM checkpoints to snapshots
rdm_files.py        Official files of RDM, EDM and NVIDIA: pickled modules with source code
wavediff.py         Official WaveDiff and DDGAN checkpoints to snapshots
wavediff_files.py   Official files of WaveDiff and DDGAN: settings and weights
wavediff_shapes.py  A generator's configuration inferred from the shapes of its weights
"""
