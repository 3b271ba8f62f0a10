"""Features: computed once for each set of images, detector and tap, on any number of ranks.

batches.py  What ranks write while they compute, and how it is merged
extract.py  Fill the store: one pass over the images, whatever detectors need them
store.py    Where features are kept: a directory for each set and detector, a file for each tap
"""
