"""Sets of images to evaluate: directories, zips, tars, arrays, packed sets.

files.py      Image files in folders, zips and tars: listing, classes, decoding
grid.py       Grid pictures of samples
image_set.py  Image sets to evaluate: folders, zips, tars, packed shards and ADM sample batches
npz.py        Arrays inside .npz files
"""
