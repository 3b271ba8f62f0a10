"""Checks of the WaveDiff goldens, one function per kind of file."""
