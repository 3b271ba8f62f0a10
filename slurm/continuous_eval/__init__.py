"""Scheduled evaluation of the snapshots of runs, each exactly once.

command.py    `relaywave slurm reconcile`: submit due evaluations, once or every few minutes
schedule.py   The evaluation schedule of a run (`evaluation/plan.json`), and the job that evaluates
reconcile.py  Which evaluations are due, and their submission
leases.py     Claims: which caller submits an evaluation, and which job runs it
lost_jobs.py  Training that could not be requeued from its node, submitted again
panels.py     Results go to the run's own loggers
results.py    Results: the best snapshot, early stop, removal of old snapshots
"""
