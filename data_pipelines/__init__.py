"""Image sets: packing into shards, and streaming of the shards in a pure, global sample order.

bench.py         How fast a packed set can be delivered, by backend, beside the bare rate of the
commands.py      The commands that look at packed sets
datasets.py      The packed sets of a configuration as one numbered collection of samples, with
images.py        Single images
pipeline.py      The seam between image sets and everything that consumes images
progress.py      Progress
sample_order.py  The sample order
backends/        Backends: each delivers the one global sample order as batches on a device
pack/            Packing: from a source of images to packed sets, in parallel and resumable
packed/          Packed sets on disk
sources/         Where images come from
"""
