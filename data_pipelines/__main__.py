"""`python -m data_pipelines pack|info`: prepare image sets, and look at them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.manifest import Manifest, read_manifest
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
    info = commands.add_parser("info", help="describe a packed set")
    info.add_argument("path", type=Path, help="folder of the set")
    info.add_argument(
        "--classes", action="store_true", help="print only the number of classes (for scripts)"
    )
    info.set_defaults(command=lambda arguments: _print_info(arguments.path, arguments.classes))
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
        type=_numbers,
        required=True,
        help="edge of the stored images; several (64,256) make a set each in one pass",
    )
    parser.add_argument("--format", choices=("png", "webp", "jpeg"), default="png")
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality, 1..95")
    parser.add_argument("--shard-images", type=int, help="items per shard (default: about 128 MB)")
    parser.add_argument("--limit", type=int, help="take only the first items of the source")
    parser.add_argument("--subset", type=int, help="take this many, each class its share")
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
    parser.add_argument("--classes", type=Path, help="imagenet: file with one wnid per line")
    parser.add_argument("--ground-truth", type=Path, help="imagenet-val: devkit, csv or wnid file")
    parser.add_argument("--split", help="cifar10: train, test; stl10: unlabeled, train, test")
    parser.add_argument("--image-column", help="parquet: column of the images")
    parser.add_argument("--label-column", help="parquet: column of the class indices")
    parser.set_defaults(command=_pack)


def _pack(arguments: argparse.Namespace) -> None:
    if arguments.workers < 1:
        raise ValueError(f"workers={arguments.workers} must be at least 1")
    options = PackOptions(
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
    packer = Packer(
        make_source(arguments.kind, arguments.source, _details(arguments)),
        arguments.destination,
        options,
        workers=arguments.workers,
        max_skips=arguments.max_skips,
    )
    if arguments.shard is not None:
        packer.pack_share(arguments.shard)
        print(f"share {arguments.shard.number} of {arguments.shard.count} is written")
        return
    for folder, manifest in (packer.finish() if arguments.finish else packer.pack()).items():
        print(_summary(folder, manifest))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


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
    text = (
        f"{path}: {manifest.num_images} images of {manifest.resolution}x{manifest.resolution},"
        f" {classes}, {len(manifest.shards)} shards, {size:.1f} MB"
    )
    if manifest.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.skipped.items())
        text += f"; skipped {sum(manifest.skipped.values())} ({reasons}; see skipped.jsonl)"
    return text


def _print_info(path: Path, only_classes: bool) -> None:
    manifest = read_manifest(path)
    if only_classes:
        print(len(manifest.class_names))
        return
    print(_summary(path, manifest))
    print(f"source   {manifest.kind}: {manifest.source['path']}")
    print("options  " + ", ".join(f"{key}={value}" for key, value in manifest.options.items()))
    print(f"digest   {manifest.digest}")
    for name, count in zip(manifest.class_names, manifest.class_counts, strict=True):
        print(f"  {count:8d}  {name}")


if __name__ == "__main__":
    sys.exit(main())
