"""Packed sets on disk: manifest, index, tar shards, FFCV's file; reading, checking, caching.

manifest.py       What a packed set is on disk: a manifest, an index, and tar shards
reader.py         Random access to a set's samples: bytes, label or pixels by index
joined.py         Several sets as one collection
remote.py         Sets on web servers and object stores, read through a local cache
prefetch.py       Downloading the coming shards of remote sets ahead of the reader
beton.py          FFCV's file format (`.beton`), written from a set's shards
beton_reader.py   Random access to the samples of a beton
check.py          Verifying a set: every byte against the manifest, every image by decoding it
contact_sheet.py  A picture of randomly chosen images
"""
