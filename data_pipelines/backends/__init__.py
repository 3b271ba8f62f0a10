"""Backends: each delivers the one global sample order as batches on a device.

build.py          From a data configuration to the pipeline of its backend
dali.py           NVIDIA DALI over the packed shards, on the GPU (nvJPEG) or on the CPU
dali_graph.py     The DALI graph: from encoded bytes to pixels, the same on both
webdataset.py     Reading the packed WebDataset shards with CPU threads and Pillow
ffcv.py           FFCV's compiled decoder over a set's `.beton`
synthetic.py      Generated images, for tests and dry runs
sample_reader.py  Shared by all: from positions to stored samples, replacing damaged ones
batches.py        Shared by all: reading ahead, flips, box reduction, labels
"""
