"""Packed sets on disk: manifest, index, tar shards, FFCV's file; reading, checking, caching."""
