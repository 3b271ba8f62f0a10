"""Image sets: packing into shards, and streaming of the shards in a pure, global sample order.

pipeline.py      The interface: settings, batches, pipelines
datasets.py      The packed sets of a configuration as one numbered collection, with its order
sample_order.py  The order: position to sample and flip, by arithmetic
shard_urls.py    Which tars of a WebDataset a path names
remote_files.py  Files on web servers and in object stores, whatever the network does
images.py        Single images: decoding, cropping, resizing, encoding
arguments.py     The command line: the parser of all commands
commands.py      The commands `info`, `check`, `beton`, `preview` and `bench`
bench.py         How fast each backend delivers a packed set
progress.py      A progress bar on a terminal, plain lines elsewhere
backends/        Deliver the order as batches on a device: DALI, WebDataset, FFCV, synthetic
pack/            From a source of images to packed sets, in parallel and resumable
packed/          Packed sets on disk: reading, checking, caching
sources/         Where images come from: one file per kind
"""
