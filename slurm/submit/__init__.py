"""Submitting: options, validation before anything is queued, and the launcher.

arguments.py           Options that all submitting commands share, and what they resolve to
check_arguments.py     Judging at submission the words that a job will hand to another of relayw
code_copy.py           A copy of the code in the folder of its jobs
elastic.py             Going on with fewer nodes when the wanted number is not to be had
eval_pack_commands.py  `python -m slurm sample | eval | reference | pack`
launcher.py            Submitting jobs through submitit
preflight.py           What is refused before anything is queued
sweep_command.py       `python -m slurm sweep`
train_command.py       `python -m slurm train | resume`: runs as jobs
"""
