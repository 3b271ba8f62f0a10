"""Where images come from: one class per kind of source, each a picklable description of its input.

A source lists its items once, in an order that depends on its content alone; then any number of
processes open it and read the items that they are given. Nothing is unpacked to disk.
"""
