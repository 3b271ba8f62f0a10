"""Checkpoints: all state of a run, sharded, hashed, elastic."""
