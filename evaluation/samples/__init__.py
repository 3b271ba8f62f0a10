"""Samples: drawn from seeds on any number of ranks, post-processed, stored.

generate.py       Samples from seeds: the same images on any number of ranks
postprocess.py    Apply the post-processing of the published evaluations
sample_dir.py     Samples stored on disk: written once, on any number of ranks, resumable
sample_shards.py  Samples stored as tar shards, which are a packed set
timing.py         Running times of samplers, by the protocol of WaveDiff's paper
"""
