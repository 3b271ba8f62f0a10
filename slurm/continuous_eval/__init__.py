"""Scheduled evaluation of the snapshots of runs, each exactly once."""
