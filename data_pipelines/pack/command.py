"""The command `pack`: its arguments, and the packer that they describe."""

from __future__ import annotations

import argparse
import os
import threading
from pathlib import Path

from data_pipelines.commands import summary
from data_pipelines.images import ORIGINAL
from data_pipelines.pack.options import PackOptions
from data_pipelines.pack.packer import Packer, Task
from data_pipelines.packed.manifest import Manifest, read_manifest
from data_pipelines.sources.base import Source
from data_pipelines.sources.kinds import SOURCES, SourceDetails, make_source
from models import command_line


def add_pack(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    kinds = "\n".join(f"  {name:14s}{kind.help}" for name, kind in SOURCES.items())
    parser.epilog = f"kinds of sources:\n{kinds}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "kind", choices=SOURCES, metavar="KIND", help="kind of the source, see below"
    )
    parser.add_argument("source", type=Path, nargs="?", help="what to pack (not for photographs)")
    parser.add_argument("destination", type=Path, help="directory of the set, created if missing")
    _add_image_arguments(parser.add_argument_group("what is stored of an image"))
    _add_selection_arguments(parser.add_argument_group("which images"))
    _add_source_arguments(parser.add_argument_group("for some kinds of sources"))
    _add_work_arguments(parser.add_argument_group("how the work is done"))
    parser.set_defaults(command=_pack)


def _add_image_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--resolution",
        type=_resolutions,
        required=True,
        help="edge of the stored images, or `original` for the files as they are;"
        " several (64,256) write one set each in one pass",
    )
    group.add_argument(
        "--filter",
        choices=("lanczos", "bilinear"),
        default="lanczos",
        help="centre crop, then Lanczos, as RDM's tools do (default); or bilinear, then centre"
        " crop, as WaveDiff's loaders do",
    )
    group.add_argument("--format", choices=("png", "webp", "jpeg"), default="png")
    group.add_argument("--quality", type=int, default=95, help="JPEG quality, 1..95")
    group.add_argument("--unlabelled", action="store_true", help="do not store the classes")
    group.add_argument(
        "--output",
        choices=("webdataset", "ffcv", "both"),
        default="webdataset",
        help="tar shards (default), FFCV's file, or both",
    )


def _add_selection_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--limit", type=int, help="take only this many items of the source")
    group.add_argument(
        "--subset", type=int, help="take at most this many images, in proportion from each class"
    )
    group.add_argument(
        "--holdout", type=int, help="put this many images into a separate set, DEST/holdout"
    )
    group.add_argument(
        "--duplicates",
        choices=("keep", "skip"),
        help="images with equal pixels (default: keep in published benchmark sets, else skip)",
    )
    group.add_argument("--min-edge", type=int, default=16, help="skip images with a shorter side")


def _add_source_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--classes", type=Path, help="imagenet: file with one wnid per line")
    group.add_argument("--ground-truth", type=Path, help="imagenet-val: devkit, csv or wnid file")
    group.add_argument(
        "--split", help="which of the source's splits to pack: train, val, test, ... (train,val)"
    )
    group.add_argument("--image-column", help="parquet: column of the images")
    group.add_argument("--label-column", help="parquet: column of the class indices")


def _add_work_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes (default: all cores)",
    )
    group.add_argument("--shard-images", type=int, help="items per shard (default: about 128 MB)")
    group.add_argument(
        "--max-skips", type=int, help="stop when more than this many items are unusable"
    )
    group.add_argument(
        "--shard",
        type=_task,
        metavar="I/N",
        help="write only task I of N, from 0 (a Slurm array task); --finish joins them",
    )
    group.add_argument("--finish", action="store_true", help="join what the array tasks wrote")


def _pack(arguments: argparse.Namespace) -> None:
    packer = _packer(arguments)
    if arguments.shard is not None:
        packer.pack_share(arguments.shard)
        print(f"task {arguments.shard.number} of {arguments.shard.count} is done")
        return
    sets = packer.finish() if arguments.finish else packer.pack()
    for set_dir, manifest in sets.items():
        _write_beton(set_dir, manifest, arguments.output)
        print(summary(set_dir, read_manifest(set_dir)))


def _packer(arguments: argparse.Namespace) -> Packer:
    if arguments.workers < 1:
        raise ValueError(f"workers={arguments.workers} must be at least 1")
    options = _options(arguments)
    if arguments.output != "webdataset":
        from data_pipelines.pack.options import check_beton_options

        check_beton_options(options)
    return Packer(
        _source(arguments),
        arguments.destination,
        options,
        workers=arguments.workers,
        max_skips=arguments.max_skips,
    )


def _options(arguments: argparse.Namespace) -> PackOptions:
    """Return the options of the arguments. Raises ValueError if they are invalid."""
    if arguments.finish and arguments.shard is not None:
        raise ValueError("--shard writes a share, --finish joins all of them: give one of the two")
    if arguments.format != "jpeg" or arguments.resolution == (ORIGINAL,):
        why = "only images that are stored as JPEG have a quality (--format jpeg)"
        command_line.reject_unused(arguments, {"quality": why})
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


def _source(arguments: argparse.Namespace) -> Source:
    """Return the source of the arguments. Raises SourceError if it is invalid."""
    details = SourceDetails(
        classes=arguments.classes,
        ground_truth=arguments.ground_truth,
        split=arguments.split,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
    )
    return make_source(arguments.kind, arguments.source, details)


def _write_beton(set_dir: Path, manifest: Manifest, output: str) -> None:
    if manifest.only_beton and output != "ffcv":
        raise ValueError(f"{set_dir} was packed with --output ffcv; give another destination")
    if output == "both":
        from data_pipelines.packed.beton import write_beton

        write_beton(set_dir)
    elif output == "ffcv":
        from data_pipelines.packed.beton import keep_only_beton

        keep_only_beton(set_dir)


def check_pack(arguments: argparse.Namespace, patience: float = 15.0) -> tuple[str, ...] | None:
    """Validate the arguments of `pack` without packing, so that launchers can reject them.

    Args:
        arguments: The command line, parsed.
        patience: Seconds that listing the source may take; the job validates slower sources, such
            as a large tar.

    Returns:
        The names of the classes, None if listing took too long.

    Raises:
        ValueError: Packing would reject them.
    """
    command_line.check_files(arguments)
    _options(arguments)
    _source(arguments)
    found: list[tuple[str, ...]] = []
    problems: list[Exception] = []

    def list_source() -> None:
        try:
            packer = _packer(arguments)
            packer.check()
            found.append(packer.class_names)
        except (ValueError, OSError) as error:
            problems.append(error)

    listing = threading.Thread(target=list_source, daemon=True)
    listing.start()
    listing.join(patience)
    for problem in problems:
        raise problem
    return found[0] if found else None


def _resolutions(text: str) -> tuple[int, ...]:
    return tuple(map(_resolution, text.split(",")))


def _resolution(text: str) -> int:
    if text == "original":
        return ORIGINAL
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a positive edge nor `original`; write several as 64,256"
        )
    return int(text)


def _task(text: str) -> Task:
    number, _, count = text.partition("/")
    try:
        return Task(int(number), int(count))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a task I/N; the tasks of 4 are 0/4, 1/4, 2/4 and 3/4"
        ) from None
