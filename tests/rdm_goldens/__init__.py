"""Checks of the RDM goldens, one function per kind of file."""
