"""`python -m models convert|spectrum`: take over official checkpoints, and analyse noise."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import relaywave

if __name__ == "__main__":
    relaywave.reject_hidden_packages("models")

from models.analysis import spectrum
from models.convert import rdm as rdm_convert
from models.convert import wavediff as wavediff_convert

EXAMPLES = """examples:
  python -m models convert rdm-official network-snapshot.pkl snapshots/imagenet64
  python -m models convert wavediff-official netG_1300.pth snapshots/celebahq256
  python -m models spectrum photographs/ spectrum/ --resolution 256 --upscale 4
"""


def main(argv: Sequence[str] | None = None, prog: str = "python -m models") -> int:
    """Run a command; return the exit code: 0, or 2 after one line on what is wrong."""
    arguments = _parse(argv, prog)
    try:
        arguments.run(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _parse(argv: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """Parse a command line whose key=value settings may stand before or behind the options."""
    parser = build_parser(prog)
    arguments, rest = parser.parse_known_args(argv)
    if "overrides" in arguments:
        arguments.overrides += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser: argparse.ArgumentParser = relaywave.Parser(
        prog=prog,
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    convert = commands.add_parser("convert", help="turn an official checkpoint into a snapshot")
    formats = convert.add_subparsers(required=True, metavar="FORMAT")
    rdm_convert.add_parser(formats)
    wavediff_convert.add_parser(formats)
    spectrum.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
