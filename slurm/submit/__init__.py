"""Submitting: options, validation before anything is queued, and the launcher.

train_command.py       `relaywave slurm train | resume`: runs as jobs
sweep_command.py       `relaywave slurm sweep`: a grid of runs as one array
eval_pack_commands.py  `relaywave slurm sample | eval | reference | pack`
arguments.py           Options that all submitting commands share, and what they resolve to
sbatch_options.py      Options of sbatch on command lines, in the shell, and what they set
preflight.py           Checks before anything is queued: run, time limit, request to Slurm
check_arguments.py     Validation of arguments that a job passes on to another command
elastic.py             Fewer nodes for pending jobs when the requested number is unavailable
launcher.py            Submission through submitit: batch script, environment, job records
in_order.py            Jobs of this machine one after another
code_copy.py           A copy of the code beside the records of its jobs
"""
