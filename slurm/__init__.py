"""Launching relaywave's commands as Slurm jobs."""
