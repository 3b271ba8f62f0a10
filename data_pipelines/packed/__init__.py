"""Packed sets on disk: manifest, index, tar shards, FFCV's file; reading, checking, caching.

beton.py     FFCV's file format (`.beton`), written from a packed set's shards
check.py     Checking a packed set: every byte against the manifest, every image by decoding it
manifest.py  What a packed set is on disk: a manifest, an index, and tar shards
prefetch.py  Downloading the shards that come next in the order while the current ones are read
reader.py    Reading packed shards at random: one sample's bytes, label or pixels by its index
remote.py    Packed sets on web servers and object stores, read through a local cache of whole f
"""
