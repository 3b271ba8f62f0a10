"""Packing: from a source of images to packed sets, in parallel and resumable.

command.py       The command `pack`: its words, and what they ask for
finish.py        Joining finished shards into sets: index, skip list, manifest
options.py       What determines the content of packed sets, besides their source
packer.py        Packing a source into sets of shards: in parallel, deterministic, resumable
shard_writer.py  Writing one WebDataset tar shard
work_dir.py      The working folder of a pack
worker.py        What a packing process does
"""
