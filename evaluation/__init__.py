"""Distributed generation and evaluation of snapshots."""
