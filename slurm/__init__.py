"""relaywave's commands as Slurm jobs.

workflows/        Experiments as graphs of jobs, each a documented function like a recipe
paper/            `relaywave paper`: the papers' tables and figures, one command each
report/           `relaywave report`: a page about runs that people look at
monitor/          Where runs and their jobs stand: status, logs, history, cancel
continuous_eval/  Scheduled evaluation of the snapshots of runs, each exactly once
doctor.py         `relaywave slurm doctor`: whether a site is fit for training
submit/           Submitting: options, validation before anything is queued, the launcher
jobs/             What jobs do: their ranks, their records, how they end, whether they run again
resources.py      What a job requests from the scheduler, and the limits of running it again
site.py           The site profile (TOML): facts of a cluster, such as partition and account
log_lines.py      The time of each line that ranks print
sbatch_keys.py    Options of sbatch by name: whose they are, and those of the user's shell
slurm_cli.py      Slurm's own commands, called without a shell and parsed into plain types
"""
