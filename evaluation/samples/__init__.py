"""Samples: generated from seeds on any number of ranks, kept, post-processed.

generate.py       Samples from seeds: the same images on any number of ranks
postprocess.py    What papers did to samples between the network and the metric
sample_dir.py     Samples kept on disk: written once, on any number of ranks, resumable
sample_shards.py  Samples kept as tar shards that are a packed set
"""
