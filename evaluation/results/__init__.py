"""Results: one JSON each, and the tables and curves made of them.

compare.py      Results over training
result_file.py  Result files
table.py        The comparison table of results, and what its numbers may be compared with
"""
