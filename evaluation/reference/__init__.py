"""Reference statistics: made, imported, exported.

exporters.py  Writing the field's statistics files from ours, and sample batches from images
importers.py  Reading the statistics files that the field already has
reference.py  Reference statistics in our own format, and where to get them from
"""
