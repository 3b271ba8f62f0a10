"""Conversion of official checkpoints, which are read without executing anything in them."""
