"""The command `pack`: its words, and what they ask for."""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.commands import summary
from data_pipelines.images import ORIGINAL
from data_pipelines.pack.options import PackOptions
from data_pipelines.pack.packer import Packer, Task
from data_pipelines.packed.manifest import Manifest, read_manifest
from data_pipelines.sources.base import Source
from data_pipelines.sources.kinds import KINDS, SourceDetails, make_source


def add_pack(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    kinds = "\n".join(f"  {name:14s}{kind.help}" for name, kind in KINDS.items())
    parser.epilog = f"kinds of sources:\n{kinds}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help="kind of the source, see below")
    parser.add_argument("source", type=Path, nargs="?", help="what to pack (not for photographs)")
    parser.add_argument("destination", type=Path, help="folder of the set, made if missing")
    parser.add_argument(
        "--resolution",
        type=_resolutions,
        required=True,
        help="edge of the stored images, or `original` for the files as they are;"
        " several (64,256) make a set each in one pass",
    )
    parser.add_argument(
        "--filter",
        choices=("lanczos", "bilinear"),
        default="lanczos",
        help="centre crop, then Lanczos, as RDM's tools do (default); or bilinear, then centre"
        " crop, as WaveDiff's loaders do",
    )
    parser.add_argument("--format", choices=("png", "webp", "jpeg"), default="png")
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality, 1..95")
    parser.add_argument("--shard-images", type=int, help="items per shard (default: about 128 MB)")
    parser.add_argument("--limit", type=int, help="take only the first items of the source")
    parser.add_argument("--subset", type=int, help="take at most this many, each class its share")
    parser.add_argument("--holdout", type=int, help="put this many into a set of their own")
    parser.add_argument(
        "--duplicates",
        choices=("keep", "skip"),
        help="images of equal pixels (default: keep in published benchmark sets, else skip)",
    )
    parser.add_argument("--min-edge", type=int, default=16, help="skip images with a shorter side")
    parser.add_argument("--unlabelled", action="store_true", help="leave the classes out")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--max-skips", type=int, help="stop when more items are unusable")
    parser.add_argument(
        "--shard",
        type=_task,
        metavar="I/N",
        help="write only share I of N, from 0 (a Slurm array task); --finish joins them",
    )
    parser.add_argument("--finish", action="store_true", help="join what the array tasks wrote")
    parser.add_argument(
        "--output",
        choices=("webdataset", "ffcv", "both"),
        default="webdataset",
        help="tar shards (default), FFCV's file, or both",
    )
    parser.add_argument("--classes", type=Path, help="imagenet: file with one wnid per line")
    parser.add_argument("--ground-truth", type=Path, help="imagenet-val: devkit, csv or wnid file")
    parser.add_argument("--split", help="cifar10: train, test; stl10: unlabeled, train, test")
    parser.add_argument("--image-column", help="parquet: column of the images")
    parser.add_argument("--label-column", help="parquet: column of the class indices")
    parser.set_defaults(command=_pack)


def options_of(arguments: argparse.Namespace) -> PackOptions:
    """Return the options that the words ask for. Raises PackError if they are impossible."""
    return PackOptions(
        resolution=arguments.resolution,
        filter=arguments.filter,
        image_format=arguments.format,
        quality=arguments.quality,
        shard_images=arguments.shard_images,
        limit=arguments.limit,
        subset=arguments.subset,
        holdout=arguments.holdout,
        min_edge=arguments.min_edge,
        labelled=not arguments.unlabelled,
        keep_duplicates={"keep": True, "skip": False}.get(arguments.duplicates),
    )


def source_of(arguments: argparse.Namespace) -> Source:
    """Return the source that the words name. Raises SourceError if it cannot be one."""
    details = SourceDetails(
        classes=arguments.classes,
        ground_truth=arguments.ground_truth,
        split=arguments.split,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
    )
    return make_source(arguments.kind, arguments.source, details)


def check_pack(arguments: Sequence[str], patience: float = 15.0) -> tuple[str, ...] | None:
    """Validate the arguments of `pack` without packing, so that launchers can reject them.

    Args:
        arguments: What follows `pack` on the command line.
        patience: Seconds that listing the source may take. A source that takes longer, such as a
            large tar, is left to the job.

    Returns:
        The names of the classes, None if listing took too long.

    Raises:
        ValueError: Packing would reject them.
        SystemExit: They do not parse; a message was printed.
    """
    parser = argparse.ArgumentParser(prog="pack")
    add_pack(parser)
    return _check(parser.parse_args(arguments), patience)


def _check(arguments: argparse.Namespace, patience: float) -> tuple[str, ...] | None:
    options_of(arguments)
    source_of(arguments)
    found: list[tuple[str, ...]] = []
    problems: list[Exception] = []

    def look() -> None:
        try:
            packer = _packer(arguments)
            packer.check()
            found.append(packer.class_names)
        except (ValueError, OSError) as error:
            problems.append(error)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(patience)
    for problem in problems:
        raise problem
    return found[0] if found else None


def _packer(arguments: argparse.Namespace) -> Packer:
    if arguments.workers < 1:
        raise ValueError(f"workers={arguments.workers} must be at least 1")
    options = options_of(arguments)
    if arguments.output != "webdataset":
        from data_pipelines.pack.options import check_beton_options

        check_beton_options(options)
    return Packer(
        source_of(arguments),
        arguments.destination,
        options,
        workers=arguments.workers,
        max_skips=arguments.max_skips,
    )


def _pack(arguments: argparse.Namespace) -> None:
    packer = _packer(arguments)
    if arguments.shard is not None:
        packer.pack_share(arguments.shard)
        print(f"share {arguments.shard.number} of {arguments.shard.count} is written")
        return
    sets = packer.finish() if arguments.finish else packer.pack()
    for folder, manifest in sets.items():
        _write_beton(folder, manifest, arguments.output)
        print(summary(folder, read_manifest(folder)))


def _write_beton(folder: Path, manifest: Manifest, output: str) -> None:
    if manifest.only_beton and output != "ffcv":
        raise ValueError(f"{folder} was packed with --output ffcv; give another destination")
    if output == "both":
        from data_pipelines.packed.beton import write_beton

        write_beton(folder)
    elif output == "ffcv":
        from data_pipelines.packed.beton import keep_only_beton

        keep_only_beton(folder)


def _resolutions(text: str) -> tuple[int, ...]:
    return tuple(map(_resolution, text.split(",")))


def _resolution(word: str) -> int:
    if word == "original":
        return ORIGINAL
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(
            f"{word!r} is neither a positive edge nor `original`; several are written 64,256"
        )
    return int(word)


def _task(text: str) -> Task:
    number, _, count = text.partition("/")
    try:
        return Task(int(number), int(count))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no share I/N; of 4 they are 0/4, 1/4, 2/4 and 3/4"
        ) from None
