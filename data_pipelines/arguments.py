"""The command line of `relaywave data`: its parser."""

from __future__ import annotations

import argparse

from data_pipelines import commands
from data_pipelines.pack.command import add_pack
from relaywave import Parser, add_import

EXAMPLES = """examples:
  relaywave data pack photographs data/photographs --resolution 64
  relaywave data pack images my_pictures.zip data/mine --resolution 256 --workers 8
  relaywave data info data/mine
"""


def build_parser(prog: str = "relaywave data") -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(
        prog=prog,
        description="`relaywave data COMMAND`: prepare image sets, check them, look at them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, add_arguments, purpose in (
        ("pack", add_pack, "write a source of images as shards"),
        ("info", commands.add_info, "describe a packed set"),
        ("check", commands.add_check, "read a complete set and find any damage"),
        ("beton", commands.add_beton, "write FFCV's file of a set next to its shards"),
        ("preview", commands.add_preview, "write a contact sheet of a set"),
        ("bench", commands.add_bench, "measure how fast a set is delivered"),
    ):
        command = subparsers.add_parser(name, help=purpose, description=purpose)
        add_arguments(command)
        add_import(command)
    return parser
