"""The options of the evaluation commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from evaluation.detectors.passes import AUTO, DEFAULT
from evaluation.detectors.registry import DEFAULT_DETECTOR, DETECTORS
from evaluation.metrics.registry import METRICS
from evaluation.protocols import PROTOCOLS
from evaluation.reference.exporters import FORMATS
from evaluation.results.formats import FORMS
from evaluation.samples.postprocess import QUANTISATIONS, RETOUCHES, Codec
from evaluation.samples.timing import PUBLISHED_BATCH, PUBLISHED_REPEATS, PUBLISHED_WARM_UP
from evaluation.sheets.make import KINDS as KINDS_OF_SHEETS
from relaywave import Parser, add_import, complete_by

GRID_IMAGES = 64
SHARED = ("sample", "reference", "run", "sweep", "sheet")
"""Commands whose work ranks can share."""

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def parse(
    argv: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None
) -> argparse.Namespace:
    """Parse a command line; `key=value` overrides may follow the command anywhere."""
    parser = parser or build_parser()
    args, rest = parser.parse_known_args(argv)
    unknown = [text for text in rest if text.startswith("-") or "=" not in text]
    if unknown or (rest and not isinstance(getattr(args, "source", None), list)):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        args.source += rest
    return args


def build_parser(prog: str = "relaywave eval") -> argparse.ArgumentParser:
    """Return the parser; the chosen command's name is the attribute `command`."""
    parser: argparse.ArgumentParser = Parser(
        prog=prog,
        description="Draw samples, compute references and results; ranks share the work.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    sample = _shared(_command(commands, "sample", "write samples as image files"))
    reference = _shared(_command(commands, "reference", "compute reference statistics"))
    run = _shared(_command(commands, "run", "evaluate snapshots or images"))
    sweep = _shared(_command(commands, "sweep", "evaluate a model with a grid of settings"))
    _add_sample(sample)
    _add_reference(reference)
    _add_run(run)
    _add_sweep(sweep)
    for parser_of_command in (sample, reference, run, sweep):
        parser_of_command.add_argument(
            "--dry-run", action="store_true", help="only say whether the command is valid"
        )
    _add_time(_command(commands, "time", "measure the running time of a model's sampler"))
    _add_demo(_command(commands, "demo", "draw samples in a browser, with controls"))
    _add_sheet(_shared(_command(commands, "sheet", "draw images to look at, and say which")))
    _add_views(commands)
    _add_conversions(commands)
    return parser


def _command(commands: Subparsers, name: str, purpose: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=purpose, description=purpose)
    add_import(parser)
    return parser


def _shared(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add what commands have whose work ranks can share."""
    parser.add_argument("--ranks", type=int, help="ranks to start on this machine, one per GPU")
    return parser


def _add_sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", metavar="SNAPSHOT|key=value")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory of the images"
    )
    _add_grid(parser)
    _add_sampling(parser, "0-63")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", metavar="SNAPSHOT|key=value")
    parser.add_argument(
        "--beside",
        nargs="+",
        default=[],
        metavar="SNAPSHOT|key=value",
        help="another model, drawn beside it from equal seeds",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: this machine alone)",
    )
    parser.add_argument("--port", type=int, default=7860, help="default: 7860; 0 takes a free one")


def _add_reference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", type=Path, help="packed set, directory, zip, tar or npz of images"
    )
    parser.add_argument("out", type=Path, metavar="OUT.npz")
    protocol = parser.add_argument(
        "--protocol",
        default="",
        help="make it as a published evaluation did, one of `protocols`: detector, taps, features,"
        " flips and codec of the images; other options override it",
    )
    complete_by(protocol, lambda **_: PROTOCOLS)
    parser.add_argument(
        "--taps", default="", help="taps to compute statistics of, e.g. pool,spatial"
    )
    _add_batch_size(parser)
    _add_detector(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", metavar="SNAPSHOT|IMAGES|key=value")
    parser.add_argument(
        "--out", type=Path, metavar="RESULT.json", help="default: RUN/evaluation/SNAPSHOT-NAME.json"
    )
    _add_grid(parser)
    _add_evaluation(parser)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", metavar="SNAPSHOT|key=value")
    parser.add_argument(
        "--grid",
        action="append",
        dest="axes",
        required=True,
        metavar="key=a,b,...",
        help="an axis of the grid: a sampler's setting, e.g. sampling.eta=0,0.1,0.2, of an earlier"
        " stage stage1:sampling.steps=18,36",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="directory of the results and tables (default: RUN/evaluation/SNAPSHOT-sweep)",
    )
    parser.add_argument(
        "--point",
        action="append",
        metavar="NAME",
        help="evaluate only this point, as the tasks of an array do (e.g. eta_0.1); no table",
    )
    parser.set_defaults(grid=None, grid_images=GRID_IMAGES, grid_upscale=1)
    _add_evaluation(parser)


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    """Add what all points of a sweep, and a single evaluation, have in common."""
    parser.add_argument(
        "--reference",
        type=Path,
        required=True,
        help="statistics file, or images; with several detectors also NAME=FILE,...; moments and"
        " features of different files (FID; precision and recall): moments=FILE,features=FILE",
    )
    parser.add_argument(
        "--replace", action="store_true", help="replace the result of another request in --out"
    )
    protocol = parser.add_argument(
        "--protocol",
        default="",
        help="settings of a published evaluation, one of `protocols`, or several, separated by"
        " commas; other options override it",
    )
    complete_by(protocol, lambda **_: PROTOCOLS)
    parser.add_argument("--title", default="", help="name in tables")
    parser.add_argument(
        "--metrics", default="", help=f"kind:tap,... with kind {', '.join(METRICS)}"
    )
    parser.add_argument("--bootstrap", type=int, default=0, help="resamples for 95%% intervals")
    parser.add_argument(
        "--keep-images", type=Path, metavar="DIR", help="store the generated images there"
    )
    parser.add_argument(
        "--reference-pipeline",
        default="",
        help="preprocessing of a reference file that does not record it",
    )
    _add_sampling(parser, "")
    _add_detector(parser)


def _add_time(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", metavar="RECIPE|SNAPSHOT|key=value")
    parser.add_argument("--out", type=Path, required=True, metavar="TIMES.json")
    parser.add_argument("--title", default="", help="name in tables")
    parser.add_argument(
        "--batch-size", type=int, default=PUBLISHED_BATCH, help="images of a batch (default: 100)"
    )
    parser.add_argument(
        "--warm-up", type=int, default=PUBLISHED_WARM_UP, help="batches before (default: 10)"
    )
    parser.add_argument(
        "--repeats", type=int, default=PUBLISHED_REPEATS, help="batches timed (default: 300)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only say whether the command is valid"
    )


def _add_sheet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind",
        choices=KINDS_OF_SHEETS,
        help="samples beside their nearest neighbours in the reference; best and worst by realism;"
        " by classes; several models' samples of equal seeds; sets one below the other",
    )
    parser.add_argument("images", nargs="+", type=Path, help="samples, or other sets of images")
    parser.add_argument("--reference", type=Path, help="images that samples are compared with")
    parser.add_argument("--out", type=Path, required=True, metavar="SHEET.png")
    parser.add_argument(
        "--rows", type=int, default=8, help="rows of images; of the last, in `sets`"
    )
    parser.add_argument("--columns", type=int, default=8, help="images in a row")
    parser.add_argument("--upscale", type=int, default=1, help="integer factor of enlargement")
    parser.add_argument("--classes", default="", help="classes that are shown, e.g. 0-9,20")
    parser.add_argument("--tap", default="", help="tap whose features count (default: the widest)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per forward pass")
    _add_detector(parser)


def _add_views(commands: Subparsers) -> None:
    table = _command(commands, "table", "print results side by side")
    table.add_argument("results", nargs="+", type=Path, metavar="RESULT.json|DIR")
    compare = _command(commands, "compare", "metrics over images seen, NFE and eta")
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN|RESULT.json")
    for parser in (table, compare):
        parser.add_argument("--format", choices=FORMS, default="text", help="default: text")
    compare.add_argument("--plots", type=Path, metavar="DIR", help="draw plots there (PNG and SVG)")
    _command(commands, "protocols", "list the protocols")
    _command(commands, "weights", "list the weights files that protocols need, and where they are")
    gc = _command(commands, "gc", "show features that are kept, and remove old ones")
    gc.add_argument(
        "stores",
        nargs="*",
        type=Path,
        metavar="RUN|DIR",
        help="runs, or directories of results (default: the cache of image sets)",
    )
    gc.add_argument(
        "--older-than", type=float, metavar="DAYS", help="remove what was not used for so long"
    )


def _add_conversions(commands: Subparsers) -> None:
    exporting = _command(commands, "export", "write statistics for another tool")
    exporting.add_argument(
        "source", type=Path, metavar="REFERENCE.npz|IMAGES", help="images for adm_samples only"
    )
    exporting.add_argument("out", type=Path)
    exporting.add_argument("--format", choices=FORMATS, required=True)
    exporting.add_argument("--images", type=Path, help="images to put into an ADM reference batch")
    importing = _command(commands, "import", "convert another tool's statistics to ours")
    importing.add_argument("statistics", type=Path)
    importing.add_argument("out", type=Path, metavar="OUT.npz")
    importing.add_argument("--detector", choices=tuple(DETECTORS), default="inception")
    importing.add_argument(
        "--pipeline", default="", help="preprocessing that the file was made with"
    )
    importing.add_argument(
        "--features", type=int, default=10_000, help="features to store (default 10000)"
    )
    convert = _command(commands, "convert", "convert Inception weights to safetensors")
    convert.add_argument("weights", type=Path, help="the public .pth, or NVIDIA's .pt or .pkl")
    convert.add_argument("out", type=Path, metavar="OUT.safetensors")
    convert.add_argument("--sha256", default="", help="expected digest of the source")


def _add_grid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--grid", type=Path, help="also write a grid picture of the first images")
    parser.add_argument("--grid-images", type=int, default=GRID_IMAGES, help="images in the grid")
    parser.add_argument("--grid-upscale", type=int, default=1, help="integer factor of enlargement")


def _add_sampling(parser: argparse.ArgumentParser, seeds: str) -> None:
    parser.add_argument("--seeds", default=seeds, help="one seed per image, e.g. 0-49999")
    _add_batch_size(parser)
    parser.add_argument(
        "--labels",
        choices=("balanced", "random"),
        default="balanced",
        help="classes: seed mod classes, or drawn from the seed",
    )
    parser.add_argument("--quantisation", choices=tuple(QUANTISATIONS), help="default: edm")
    parser.add_argument("--retouch", choices=tuple(RETOUCHES), help="default: none")
    parser.add_argument("--codec", choices=get_args(Codec), help="default: png")
    parser.add_argument(
        "--shard-images",
        type=int,
        help="store tar shards of about this many images instead of single files",
    )


def _add_batch_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size",
        type=_batch_size,
        default=DEFAULT,
        metavar=f"N|{AUTO}",
        help=f"images per forward pass (default {DEFAULT}); {AUTO}: as memory allows, or as before"
        " where results or samples are there",
    )


def _batch_size(text: str) -> int | str:
    return AUTO if text == AUTO else int(text)


_batch_size.__name__ = f"number, nor {AUTO},"


def _add_detector(parser: argparse.ArgumentParser) -> None:
    detector = parser.add_argument(
        "--detector",
        default="",
        help=f"network whose features are compared: {', '.join(DETECTORS)}; `run` takes several,"
        f" separated by commas (default: the protocol's, or {DEFAULT_DETECTOR})",
    )
    complete_by(detector, lambda **_: DETECTORS)
    each = "; with several detectors, NAME=VALUE,..."
    parser.add_argument(
        "--weights",
        default="",
        help=f"weights file of the detector, if not that of weights.toml (see `weights`){each}",
    )
    parser.add_argument("--weights-sha256", default="", help=f"expected digest of that file{each}")
    parser.add_argument(
        "--pipeline", default="", help=f"preprocessing, if not the detector's default{each}"
    )
    parser.add_argument("--compile", action="store_true", help="compile the detector's network")
    parser.add_argument(
        "--features", type=int, help="features stored of a computed reference (default 10000)"
    )
