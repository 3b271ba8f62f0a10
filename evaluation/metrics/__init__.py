"""Metrics: one file each, from features or statistics to a value.

bootstrap.py           Bootstrap intervals
extrapolate.py         Values at infinitely many samples, FID and IS
fd_per_class.py        Distances per class, in few dimensions
frechet.py             Fréchet distance without a matrix square root
inception_score.py     Inception Score from logits
kid_cmmd.py            Maximum mean discrepancies
mind.py                MIND: a sliced Wasserstein-2 distance of features
nearest_neighbours.py  Distances between two sets of features, block by block, and distances to
precision_recall.py    Improved precision and recall, density and coverage
registry.py            The metrics by name
statistics.py          Means and covariances of features
"""
