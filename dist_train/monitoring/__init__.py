"""What is seen of a run: metrics, loggers, divergence, profiles, status.

divergence.py   Checks the metrics of an interval: is training going wrong, and what to change
evaluations.py  Results of scheduled evaluations, which go to the run's own loggers
loggers.py      Copies of the metrics: wandb and TensorBoard
metrics_log.py  Metrics: averaged over ranks, metrics.jsonl, the progress bar
profiler.py     A trace of a few steps, for chrome://tracing or Perfetto
reporter.py     What an interval of training was like: collected step by step, checked, logged
status.py       `relaywave train status RUN`
throughput.py   How fast training is, and where the time of a step goes
"""
