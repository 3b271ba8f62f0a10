"""Processes: ranks, signals, hangs, and the run directory that one of them writes."""
