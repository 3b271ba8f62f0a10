"""Files that others may have damaged, replaced or made: how all packages read and write them.

atomic.py      Final files and directories: complete or not there, and never in place of others'
documents.py   JSON documents: size, version, checksum and types are checked before use
json_lines.py  Logs of JSON lines: damaged lines are left out and counted
typed_json.py  JSON to dataclasses and back, by the annotations of their fields
locks.py       Locks on files: who holds one is known, and none is left behind
transient.py   Trying again after errors that pass by themselves
archives.py    Zip archives of others: sizes are checked before anything is decompressed
regular.py     Opening what may be no file: pipes and devices are rejected, not waited for
nearest.py     Paths that lead nowhere: said with the nearest thing that is there
user_toml.py   TOML files that users write for themselves: where they are, how they are read
trees.py       A bound on the size and depth of what a foreign file holds
"""
