"""Backends: each delivers the one global sample order as batches on a device.

build.py       From a data configuration to the pipeline of its backend
common.py      What all backends of packed shards share; a backend only decodes
dali.py        NVIDIA DALI over the packed shards, on the GPU (nvJPEG) or on the CPU
dali_graph.py  The DALI graph
ffcv.py        FFCV over a set's `.beton`: just-in-time compiled decoding
synthetic.py   Generated images
webdataset.py  Plain CPU reading of the packed WebDataset shards
"""
