"""Results: one JSON each, and the tables and plots made of them.

compare.py      Results over training: metrics over images seen, NFE and eta, as a table
formats.py      Tables as text, Markdown, LaTeX, HTML or CSV
plots.py        Plots of results: each metric over images seen, NFE and eta, as PNG and SVG
repeats.py      The result over a protocol's ranges of seeds, beside those of the ranges
result_file.py  Result files: one JSON per (model, protocol or detector), with every setting
table.py        The comparison table of results, and what its numbers may be compared with
"""
