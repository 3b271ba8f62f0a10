"""Where images come from: one class per kind of source, each a picklable description of its input.

base.py         The seam between kinds of sources and the packer
cifar10.py      CIFAR-10 as downloaded
edm.py          EDM- and StyleGAN-style sets
file_parts.py   Parts of a file as files of their own
files.py        Images as files
imagenet.py     ImageNet
kinds.py        The kinds of sources by their names on the command line
lmdb_file.py    Reading an LMDB database file without the LMDB library, which can only map a who
lsun.py         LSUN
parquet.py      Hugging Face parquet shards with a column of encoded images, and perhaps one of
photographs.py  The embedded set
stl10.py        STL-10 as downloaded: `stl10_binary.tar.gz`, or extracted
"""
