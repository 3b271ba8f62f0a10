"""What is seen of runs and their jobs: status, logs, history.

commands.py  `python -m slurm status | logs | history | cancel`
status.py    What runs and their jobs are doing, from run folders and Slurm's own commands
"""
