"""Packing: from a source of images to packed sets, in parallel and resumable."""
