"""Sets of images to evaluate: directories, zips, tars, arrays, packed sets.

files.py      Image files: decoded strictly, encoded as in published sets
grid.py       Grid pictures of the first images of a set
image_set.py  Image sets: directories, zips, tars, packed sets and ADM sample batches
npz.py        Arrays inside .npz files: no pickles, streamed row by row, written atomically
seeds.py      Lists of seeds as text
"""
