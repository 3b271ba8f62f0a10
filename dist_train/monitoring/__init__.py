"""What is seen of a run: metrics, loggers, divergence, profiles, status."""
