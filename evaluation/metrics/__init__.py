"""Metrics: one file each, from features or statistics to a value.

bootstrap.py           Bootstrap intervals of metrics over resampled generated images
extrapolate.py         FID and IS extrapolated to infinitely many samples
fd_per_class.py        Fréchet distances per class, in few principal components
frechet.py             Fréchet distance without a matrix square root
inception_score.py     Inception Score from logits
kid_cmmd.py            Maximum mean discrepancies: KID and CMMD
mind.py                MIND: a sliced Wasserstein-2 distance of features
nearest_neighbours.py  Distances between sets and to the k-th neighbour, in blocks, exact
precision_recall.py    Precision, recall, density, coverage; also in half precision, as published
realism.py             Realism of single samples
registry.py            The metrics by name: what each computes, and how results call it
sharing.py             Work in numbered parts, each computed by one rank
statistics.py          Means and covariances of features, merged across batches and ranks
"""
