"""Samples: generated from seeds on any number of ranks, kept, post-processed."""
