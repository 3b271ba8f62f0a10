"""`relaywave report RUN... --out DIR`: a page about runs, written once or again and again."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from models.command_line import check_least, reject_unused, say
from slurm.report.collect import collect
from slurm.report.page import INDEX, check_out, write_report
from slurm.report.serve import HOST, start_server

EXAMPLES = """examples:
  relaywave report runs/edm64 runs/relay256 --out report    then open report/index.html
  relaywave report runs/ --out report --serve               follows runs while they train
"""
LEAST_SECONDS = 1.0


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report`."""
    parser.description = "Write a page about runs: one file to open in a browser, without a server."
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN",
        help="directories of runs or results, or parents of some",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="where the page is written; an older report there is replaced",
    )  # fmt: skip
    parser.add_argument(
        "--serve",
        action="store_true",
        help="serve it on this machine only, and rebuild it while runs train",
    )
    parser.add_argument("--port", type=int, default=0, help="of --serve (default: a free one)")
    parser.add_argument(
        "--every", type=float, default=30.0, metavar="SECONDS",
        help="how often --serve rebuilds it (default: 30)",
    )  # fmt: skip
    parser.set_defaults(command=report)


def report(args: argparse.Namespace) -> None:
    """Write the page, and serve it if that is asked for.

    Raises:
        ValueError: A path holds no run and no results, or the output directory something else.
    """
    if not args.serve:
        reject_unused(args, dict.fromkeys(("port", "every"), "it is of --serve"))
    check_least(args, every=LEAST_SECONDS, port=0)
    check_out(args.out)
    _write(args)
    print(args.out / INDEX, flush=True)
    if args.serve:
        _serve(args)


def _write(args: argparse.Namespace) -> None:
    follow = min(args.every, 5.0) if args.serve else None
    write_report(collect(args.runs), args.runs, args.out, follow)


def _serve(args: argparse.Namespace) -> None:
    """Serve and rebuild until Ctrl-C."""
    server = start_server(args.out, args.port)
    print(f"http://{HOST}:{server.server_port}/ until Ctrl-C", flush=True)
    try:
        while True:
            time.sleep(args.every)
            try:
                _write(args)
            except (OSError, ValueError) as error:  # a run may be in the middle of something
                say(f"{error}; the page stays as it was", "warning")
    except KeyboardInterrupt:
        server.shutdown()
