"""Processes: ranks, signals, hangs, and the run directory that one of them writes.

launch.py      Several ranks on this machine
metrics_file.py  metrics.jsonl: one line per logging interval
preemption.py  Signals that ask a run to stop
run_dir.py     The run directory: one configuration, one writer at a time
run_data.py    data.json: which images a run is trained on
run_files.py   config.json and format.json: checked before they are used
watchdog.py    Noticing that a rank hangs or is gone, and saying which one
world.py       Process groups
"""
