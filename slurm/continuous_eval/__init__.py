"""Scheduled evaluation of the snapshots of runs, each exactly once.

command.py    `python -m slurm reconcile`: the command around `slurm.continuous_eval.reconcile`
leases.py     Who evaluates a snapshot
plan.py       What is evaluated of a run while it trains: `evaluation/plan.json` in its folder
reconcile.py  `python -m slurm reconcile RUNS`
results.py    Results of scheduled evaluation, and what follows
"""
