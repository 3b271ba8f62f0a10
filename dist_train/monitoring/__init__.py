"""What is seen of a run: metrics, loggers, divergence, profiles, status.

divergence.py   Judging the metrics of an interval: is training going wrong, and what follows
loggers.py      Copies of the metrics elsewhere
metrics_log.py  Metrics
profiler.py     A trace of a few steps, for chrome://tracing or Perfetto
reporter.py     What an interval of training was like: collected step by step, judged, logged
status.py       `relaywave train status RUN`
"""
