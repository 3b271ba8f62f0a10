"""`relaywave data COMMAND`: prepare image sets, check them, look at them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import relaywave

if __name__ == "__main__":
    relaywave.reject_hidden_packages("data_pipelines")

from models import command_line, plugins

if __name__ == "__main__":
    command_line.exit_on_interrupt()

from data_pipelines.arguments import build_parser


def main(argv: Sequence[str] | None = None, prog: str = "python -m data_pipelines") -> int:
    """Run a command; returns the exit code."""
    return command_line.run(lambda: _run(argv, prog))


def _run(argv: Sequence[str] | None, prog: str) -> None:
    plugins.load(sys.argv[1:] if argv is None else argv)
    arguments = build_parser(prog).parse_args(argv)
    command_line.check_files(arguments)
    with command_line.about(vars(arguments).get("destination") or arguments.path):
        arguments.command(arguments)


if __name__ == "__main__":
    sys.exit(main())
