"""Where runs and their jobs stand: status, logs, history, cancel.

commands.py  `relaywave slurm status | logs | history | cancel`
history.py   When a run trained, on how many ranks, and what that was worth
status.py    The status of runs and jobs, from run directories and Slurm's own commands
table.py     Runs side by side, such as those of a sweep
watch.py     A table of runs that follows them
"""
