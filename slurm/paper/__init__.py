"""The papers' tables and figures as commands: `relaywave paper list | run NAME | write NAME`.

command.py      The command
debug.py        `--debug`: every experiment at the size of minutes, on the embedded photographs
experiments.py  The experiments as data: sets, models, and what is evaluated of them
figures.py      Figures: our values and the published ones
plan.py         An experiment as a workflow, from the downloaded images to its table and figure
spectra.py      Figure 2 of the RDM paper: spectra of images and of noise
write.py        What an experiment writes: its table and its figure
"""
