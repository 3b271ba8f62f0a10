"""Processes: ranks, signals, hangs, and the run directory that one of them writes.

events.py        events.jsonl: starts, ends and roll-backs, for reports
launch.py        Several ranks on this machine
metrics_file.py  metrics.jsonl: one line per logging interval
preemption.py    Signals that ask a run to stop
rank_errors.py   Failures of commands that ranks share: one line, printed once
run_data.py      data.json: which images a run is trained on
run_dir.py       The run directory: one configuration, one writer at a time
run_files.py     config.json and format.json: checked before they are used
watchdog.py      Noticing that a rank hangs or is gone, and saying which one
world.py         Process groups
"""
