"""Launching relaywave's commands as Slurm jobs.

doctor.py         `python -m slurm doctor`
resources.py      What a job asks of the scheduler, and how often it is run again
site.py           The site profile
slurm_cli.py      Slurm's commands, asked and answered in plain types. Nothing here goes through
continuous_eval/  Scheduled evaluation of the snapshots of runs, each exactly once
jobs/             Jobs
monitor/          What is seen of runs and their jobs: status, logs, history
pipelines/        Pipelines: documented functions that return complete chains of jobs
submit/           Submitting: options, validation before anything is queued, and the launcher
"""
