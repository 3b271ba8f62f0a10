"""Distributed generation and evaluation of snapshots.

arguments.py    The options of the evaluation commands
dry_run.py      Judging a command line without beginning: launchers ask before they queue jobs
evaluate.py     One evaluation
features.py     Feature extraction over ranks
progress.py     Progress of a long loop: a bar on a terminal, plain lines elsewhere
protocols.py    Evaluation protocols as named objects: how published numbers came about
rank_errors.py  Failures of commands that ranks share
request.py      From command-line arguments to validated requests
detectors/      Detectors
image_sets/     Sets of images to evaluate: directories, zips, tars, arrays, packed sets
metrics/        Metrics: one file each, from features or statistics to a value
reference/      Reference statistics: made, imported, exported
results/        Results: one JSON each, and the tables and curves made of them
samples/        Samples: generated from seeds on any number of ranks, kept, post-processed
"""
