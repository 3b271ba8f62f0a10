"""Distributed generation and evaluation of snapshots.

agreement.py    Ranks agree on what they are to do before they do it
arguments.py    The options of the evaluation commands
circumstances.py  What a result depends on besides weights: facts that are compared by name
commands.py     What each sub-command does, once its command line is parsed
digest.py       Digests that identify what results and features were made of
disk.py         Directories and files that one job writes at a time, while others wait
dry_run.py      Dry run: validate a command line so that launchers can reject it before queueing
evaluate.py     One evaluation: images -> features -> metrics against a reference -> result file
overlap.py      Threads decode, encode and write while the device draws and computes
progress.py     Progress of a long loop: a bar on a terminal, plain lines elsewhere
published.py    Published values (published.toml): source, values and the circumstances of each
protocols.py    Evaluation protocols as named objects: how published numbers were made
sweep.py        A model evaluated with each point of a grid of sampler settings
request.py      Validated requests: what command-line arguments ask for
unused_options.py  Options without effect on what the others ask for, which are rejected
detectors/      Detectors: networks whose features are compared, their preprocessing and weights
features/       Features: computed once for each set, detector and tap, on any number of ranks
image_sets/     Sets of images to evaluate: directories, zips, tars, arrays, packed sets
metrics/        Metrics: one file each, from features or statistics to a value
reference/      Reference statistics: computed, cached, imported, exported
results/        Results: one JSON each, and the tables and plots made of them
samples/        Samples: drawn from seeds on any number of ranks, post-processed, stored
demo/           A page to draw samples on, in a browser
sheets/         Sheets: pictures of samples to look at, each with a JSON of what it shows
"""
