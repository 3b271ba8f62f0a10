"""`relaywave data COMMAND`: prepare image sets, check them, look at them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import relaywave

if __name__ == "__main__":
    relaywave.reject_hidden_packages("data_pipelines")

from models import command_line, plugins

if __name__ == "__main__":
    command_line.exit_on_interrupt()

from data_pipelines import commands
from data_pipelines.pack.command import add_pack

EXAMPLES = """examples:
  relaywave data pack photographs data/photographs --resolution 64
  relaywave data pack images my_pictures.zip data/mine --resolution 256 --workers 8
  relaywave data info data/mine
"""


def main(argv: Sequence[str] | None = None, prog: str = "python -m data_pipelines") -> int:
    """Run a command; returns the exit code."""
    return command_line.run(lambda: _run(argv, prog))


def _run(argv: Sequence[str] | None, prog: str) -> None:
    plugins.load(sys.argv[1:] if argv is None else argv)
    arguments = build_parser(prog).parse_args(argv)
    command_line.check_files(arguments)
    with command_line.about(vars(arguments).get("destination") or arguments.path):
        arguments.command(arguments)


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser: argparse.ArgumentParser = relaywave.Parser(
        prog=prog,
        description=__doc__,
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
        relaywave.add_import(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
