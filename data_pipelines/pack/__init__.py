"""Packing: from a source of images to packed sets, in parallel and resumable.

command.py       The command `pack`: its arguments, and the packer that they describe
packer.py        A pack from start to finish: destination, tasks, shards, resuming
options.py       The options that determine the content; which items they select
holdout.py       Choosing the hold-out once all images are known, so that none is in training
worker.py        Converting items in parallel: read, crop, resize, encode
shard_writer.py  Writing one WebDataset tar shard, and its record
work_dir.py      The working directory: locks, the request, records of finished shards
finish.py        Joining finished shards into sets: index, skip list, manifest
"""
