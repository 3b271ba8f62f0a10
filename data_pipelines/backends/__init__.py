"""Backends: each delivers the one global sample order as batches on a device."""
