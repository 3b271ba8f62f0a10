"""Checkpoints: all state of a run, sharded, hashed, elastic.

export_deepspeed.py  `relaywave train export RUN OUT`
format.py            Checkpoints
writer.py            Writing checkpoints: asynchronous, atomic, and agreed upon by all ranks
"""
