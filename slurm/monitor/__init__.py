"""Where runs and their jobs stand: status, logs, history, cancel.

commands.py  `relaywave slurm status | logs | history | cancel`
status.py    The status of runs and jobs, from run directories and Slurm's own commands
"""
