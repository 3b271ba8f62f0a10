"""`python -m data_pipelines COMMAND`: prepare image sets, check them, look at them."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.images import ORIGINAL
from data_pipelines.manifest import BETON, Manifest, read_manifest
from data_pipelines.pack import Packer, Task
from data_pipelines.pack_options import PackOptions
from data_pipelines.sources.kinds import KINDS, SourceDetails, make_source

EXAMPLES = """examples:
  python -m data_pipelines pack photographs data/photographs --resolution 64
  python -m data_pipelines pack images my_pictures.zip data/mine --resolution 256 --workers 8
  python -m data_pipelines info data/mine
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0, or 2 after one line on what is wrong."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        place = error.filename or vars(arguments).get("destination") or arguments.path
        reason = error.strerror or str(error)
        print(f"error: {place}: {reason}; what was finished stays", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_pack(commands.add_parser("pack", help="write a source of images as shards"))
    _add_info(commands.add_parser("info", help="describe a packed set"))
    _add_check(commands.add_parser("check", help="read a whole set and find any damage"))
    beton = commands.add_parser("beton", help="write FFCV's file of a set beside its shards")
    beton.add_argument("path", type=Path, help="folder of the set")
    beton.add_argument("--keep-jpeg", action="store_true", help="smaller, but decoded inexactly")
    beton.set_defaults(command=_beton)
    _add_preview(commands.add_parser("preview", help="write a contact sheet of a set"))
    _add_bench(commands.add_parser("bench", help="measure how fast a set is delivered"))
    return parser


def _add_pack(parser: argparse.ArgumentParser) -> None:
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


def check_pack(words: Sequence[str], patience: float = 15.0) -> tuple[str, ...] | None:
    """Judge a command line of `pack` without packing: launchers ask before they queue jobs.

    Args:
        words: The command line.
        patience: Seconds that listing the source may take. One that takes longer, such as a large
            tar, is left for the job to judge.

    Returns:
        The names of the classes, None if that took too long.

    Raises:
        ValueError: It would be refused.
        SystemExit: It does not parse; a usage message was printed.
    """
    arguments = _parser().parse_args(words)
    _pack_options(arguments)
    make_source(arguments.kind, arguments.source, _details(arguments))
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
    options = _pack_options(arguments)
    if arguments.output != "webdataset":
        from data_pipelines.beton import check_beton_options

        check_beton_options(options)
    return Packer(
        make_source(arguments.kind, arguments.source, _details(arguments)),
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
        print(_summary(folder, read_manifest(folder)))


def _write_beton(folder: Path, manifest: Manifest, output: str) -> None:
    if manifest.only_beton and output != "ffcv":
        raise ValueError(f"{folder} was packed with --output ffcv; give another destination")
    if output == "both":
        from data_pipelines.beton import write_beton

        write_beton(folder)
    elif output == "ffcv":
        from data_pipelines.beton import keep_only_beton

        keep_only_beton(folder)


def _pack_options(arguments: argparse.Namespace) -> PackOptions:
    return PackOptions(
        resolution=arguments.resolution,
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


def _resolutions(text: str) -> tuple[int, ...]:
    return tuple(map(_resolution, text.split(",")))


def _resolution(word: str) -> int:
    if word == "original":
        return ORIGINAL
    edge = int(word)
    if edge < 1:
        raise argparse.ArgumentTypeError(f"{edge} is neither a positive edge nor `original`")
    return edge


def _task(text: str) -> Task:
    number, _, count = text.partition("/")
    return Task(int(number), int(count))


def _details(arguments: argparse.Namespace) -> SourceDetails:
    return SourceDetails(
        classes=arguments.classes,
        ground_truth=arguments.ground_truth,
        split=arguments.split,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
    )


def _summary(path: Path, manifest: Manifest) -> str:
    classes = f"{len(manifest.class_names)} classes" if manifest.class_names else "unlabelled"
    size = sum(shard.num_bytes for shard in manifest.shards) / 1e6
    edge = manifest.resolution
    stored = BETON if manifest.only_beton else f"{len(manifest.shards)} shards"
    text = (
        f"{path}: {manifest.num_images} images of {f'{edge}x{edge}' if edge else 'any size'},"
        f" {classes}, {stored}, {size:.1f} MB"
    )
    if manifest.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.skipped.items())
        text += f"; skipped {sum(manifest.skipped.values())} ({reasons}; see skipped.jsonl)"
    return text


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="folder of the set")
    parser.add_argument("--classes", action="store_true", help="print the number of classes only")
    parser.set_defaults(command=_info)


def _info(arguments: argparse.Namespace) -> None:
    manifest = read_manifest(arguments.path)
    if arguments.classes:
        print(len(manifest.class_names))
        return
    print(_summary(arguments.path, manifest))
    print(f"source   {manifest.kind}: {manifest.source['path']}")
    print("options  " + ", ".join(f"{key}={value}" for key, value in manifest.options.items()))
    print(f"digest   {manifest.digest}")
    for name, count in zip(manifest.class_names, manifest.class_counts, strict=True):
        print(f"  {count:8d}  {name}")


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="folder of the set")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-decode", action="store_true", help="compare checksums only")
    parser.set_defaults(command=_check)


def _check(arguments: argparse.Namespace) -> None:
    from data_pipelines.checking import check

    report = check(arguments.path, workers=arguments.workers, decode=not arguments.no_decode)
    for problem in report.problems:
        print(problem)
    if report.problems:
        count = len(report.problems)
        raise ValueError(f"{count} problem{'s' if count > 1 else ''} in {arguments.path}")
    print(_summary(arguments.path, read_manifest(arguments.path)))
    if not arguments.no_decode:
        mean, std = (values.round(2).tolist() for values in report.mean_and_std())
        print(f"mean {mean}, standard deviation {std} of 0..255")
    print("whole: every byte is as packed")


def _beton(arguments: argparse.Namespace) -> None:
    from data_pipelines.beton import write_beton

    write_beton(arguments.path, keep_jpeg=arguments.keep_jpeg)
    print(f"{arguments.path / BETON}: {(arguments.path / BETON).stat().st_size / 1e6:.1f} MB")


def _add_preview(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="folder of the set")
    parser.add_argument("picture", type=Path, help="the picture to write (.png)")
    parser.add_argument("--count", type=int, default=64, help="images to show")
    parser.add_argument("--seed", type=int, default=0, help="chooses the images")
    parser.set_defaults(command=_preview)


def _preview(arguments: argparse.Namespace) -> None:
    from data_pipelines.preview import write_contact_sheet

    shown = write_contact_sheet(
        arguments.path, arguments.picture, count=arguments.count, seed=arguments.seed
    )
    print(f"{arguments.picture}: {shown} images")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="folder of the set")
    parser.add_argument("--resolution", type=int, help="deliver at this edge (default: as stored)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--device", default="cpu", help="where batches are delivered: cpu, cuda")
    parser.set_defaults(command=_bench)


def _bench(arguments: argparse.Namespace) -> None:
    from data_pipelines.bench import measure_all

    resolution = arguments.resolution or read_manifest(arguments.path).resolution
    if resolution == ORIGINAL:
        raise ValueError(f"{arguments.path} holds images of any size; add --resolution")
    rates = measure_all(
        arguments.path,
        resolution=resolution,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        seconds=arguments.seconds,
        device=arguments.device,
    )
    for rate in rates:
        print(rate)


if __name__ == "__main__":
    sys.exit(main())
