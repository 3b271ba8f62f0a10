"""Where images come from: one class per kind of source, each a picklable description of its input.

base.py         The interface to the packer: Source, Listing, Entry, Skip
steady.py       Reading items again after errors of the moment
kinds.py        The kinds by their names on the command line
files.py        Image files in a directory, zip, tar, or directory of tars
lister/         What packing and evaluation list: pictures, classes and splits
photographs.py  Crops of the photographs in the scikit-image wheel; needs no download
imagenet.py     ImageNet as downloaded (a tar of tars) or extracted, training and validation
lsun.py         LSUN databases, zipped or not, or exported images
cifar10.py      CIFAR-10 as downloaded
stl10.py        STL-10 as downloaded
edm.py          EDM- and StyleGAN-style zips with labels in `dataset.json`
parquet.py      Hugging Face parquet files with a column of images
lmdb_file.py    For lsun.py: an LMDB file read without the LMDB library, from any stream
file_parts.py   For lsun.py and imagenet.py: members of a zip or tar as seekable streams
"""
