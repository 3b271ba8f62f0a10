"""Backends: each delivers one global sample order as batches on a device.

build.py          From a data configuration to the pipeline of its backend
dali.py           NVIDIA DALI over the packed shards, on the GPU (nvJPEG) or on the CPU
dali_graph.py     The DALI graph: from encoded bytes to pixels, the same on both
pillow.py         Reading packed sets with CPU threads and Pillow
webdataset.py     Any WebDataset, streamed through the library of that name
streams.py        For webdataset.py: shards of unknown sizes as one order for any number of ranks
shard_counts.py   For webdataset.py: how many samples each shard holds, once it was read
ffcv.py           FFCV's compiled decoder over a set's `.beton`
synthetic.py      Generated images, for tests and dry runs
sample_reader.py  Packed sets: from positions to stored samples, replacing damaged ones
batches.py        Shared by all: reading ahead, flips, box reduction, labels
"""
