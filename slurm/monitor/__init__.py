"""What is seen of runs and their jobs: status, logs, history."""
