"""Reference statistics: computed, cached, imported, exported.

exporters.py        Write statistics files of other tools from ours, and sample batches from images
importers.py        Read statistics files of other tools
prepared.py         Reference images as a protocol prepares them: flipped, through a lossy file
reference.py        Where a reference comes from: a statistics file, or images (computed, cached)
statistics_file.py  Reference statistics in our own format
"""
