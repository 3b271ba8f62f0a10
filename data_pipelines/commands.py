"""The commands for packed sets: `info`, `check`, `preview`, `bench`, `beton`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from data_pipelines.images import ORIGINAL
from data_pipelines.packed.manifest import BETON, SKIPPED, Manifest, read_manifest
from data_pipelines.remote_files import check_no_credentials, is_remote
from data_pipelines.sources.base import printable
from models import command_line

NAMED_CLASSES = 10
"""Classes that a summary names."""

COUNTED_BATCH = 4096
"""Size of the batches in which `check` counts classes."""

WELL_MIXED = 0.9
"""Share of a full shuffle's classes per batch below which a window mixes badly."""


def summary(path: Path, manifest: Manifest) -> str:
    """Return a packed set in one line."""
    classes = f"{len(manifest.class_names)} classes" if manifest.class_names else "unlabelled"
    size = sum(shard.num_bytes for shard in manifest.shards) / 1e6
    edge = manifest.resolution
    stored = BETON if manifest.only_beton else f"{len(manifest.shards)} shards"
    text = (
        f"{path}: {manifest.num_images} images of {f'{edge}x{edge}' if edge else 'any size'},"
        f" {classes}, {stored}, {size:.1f} MB"
    )
    return text + _remarks(manifest)


def _remarks(manifest: Manifest) -> str:
    """Return what a user should look at: classes, skipped items, images that were enlarged."""
    text = ""
    if manifest.class_names:
        more = len(manifest.class_names) - NAMED_CLASSES
        named = ", ".join(map(printable, manifest.class_names[:NAMED_CLASSES]))
        text += f"; classes: {named}" + (f", ... ({more} more)" if more > 0 else "")
        pairs = zip(manifest.class_names, manifest.class_counts, strict=True)
        if empty := [printable(name) for name, count in pairs if not count]:
            text += f"; {len(empty)} without images ({', '.join(empty[:NAMED_CLASSES])})"
    if manifest.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.skipped.items())
        text += f"; skipped {sum(manifest.skipped.values())} ({reasons}; see {SKIPPED})"
    if manifest.enlarged:
        edge = manifest.resolution
        text += (
            f"; warning: {manifest.enlarged} images are smaller than {edge} pixels and were"
            f" enlarged (--min-edge {edge} skips them)"
        )
    return text


def _local(text: str) -> Path:
    """Return the path of a set on this machine."""
    if is_remote(text):
        raise argparse.ArgumentTypeError(
            f"{text} is a URL; copy the set to this machine (only `bench` reads URLs)"
        )
    return Path(text)


def add_info(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `info`."""
    parser.add_argument("path", type=_local, help="directory of the set")
    parser.add_argument("--classes", action="store_true", help="print only the number of classes")
    parser.set_defaults(command=_info)


def _info(arguments: argparse.Namespace) -> None:
    manifest = read_manifest(arguments.path)
    if arguments.classes:
        print(len(manifest.class_names))
        return
    print(summary(arguments.path, manifest))
    print(f"source   {manifest.kind}: {printable(str(manifest.source.get('path')))}")
    print("options  " + ", ".join(f"{key}={value}" for key, value in manifest.options.items()))
    print(f"digest   {manifest.digest}")
    for name, count in zip(manifest.class_names, manifest.class_counts, strict=True):
        print(f"  {count:8d}  {printable(name)}")


def add_check(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `check`."""
    parser.add_argument("path", type=_local, help="directory of the set")
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes (default: all cores)",
    )
    parser.add_argument("--no-decode", action="store_true", help="only compare checksums")
    parser.set_defaults(command=_check)


def _check(arguments: argparse.Namespace) -> None:
    from data_pipelines.packed.check import check

    command_line.check_least(arguments, workers=1)
    report = check(arguments.path, workers=arguments.workers, decode=not arguments.no_decode)
    for problem in report.problems:
        print(problem)
    if report.problems:
        count = len(report.problems)
        raise ValueError(f"{count} problem{'s' if count > 1 else ''} in {arguments.path}")
    manifest = read_manifest(arguments.path)
    print(summary(arguments.path, manifest))
    if manifest.class_counts:
        fewest, most = min(manifest.class_counts), max(manifest.class_counts)
        print(f"classes have {fewest} to {most} images; `info` counts each")
        print(_mixing(arguments.path, manifest))
    if not arguments.no_decode:
        mean, std = (values.round(2).tolist() for values in report.mean_and_std())
        print(f"mean {mean}, standard deviation {std} of 0..255")
    print("intact: every byte is as packed")


def _mixing(path: Path, manifest: Manifest) -> str:
    """Return how many classes are in a batch, and what helps where a window mixes them badly."""
    from data_pipelines.datasets import mixing

    batch_size = min(COUNTED_BATCH, manifest.num_images)
    in_full, in_window = mixing(path, batch_size)
    window = manifest.shuffle_window or manifest.num_images
    text = (
        f"a batch of {batch_size} has {in_full:.0f} of {len(manifest.class_names)} classes in a"
        f" full shuffle (local sets), {in_window:.0f} in a window of {window} (remote sets)"
    )
    if in_window < WELL_MIXED * in_full:
        text += "; warning: to train on it, copy it to local disks, or raise data.shuffle_window"
    return text


def add_beton(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `beton`."""
    parser.add_argument("path", type=_local, help="directory of the set")
    parser.add_argument(
        "--keep-jpeg",
        action="store_true",
        help="smaller, but FFCV decodes it up to 14 of 255 levels off",
    )
    parser.set_defaults(command=_beton)


def _beton(arguments: argparse.Namespace) -> None:
    from data_pipelines.packed.beton import write_beton

    write_beton(arguments.path, keep_jpeg=arguments.keep_jpeg)
    print(f"{arguments.path / BETON}: {(arguments.path / BETON).stat().st_size / 1e6:.1f} MB")


def add_preview(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `preview`."""
    parser.add_argument("path", type=_local, help="directory of the set")
    parser.add_argument("picture", type=Path, help="the picture to write (.png)")
    parser.add_argument("--count", type=int, default=64, help="number of images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choice")
    parser.set_defaults(command=_preview)


def _preview(arguments: argparse.Namespace) -> None:
    from data_pipelines.packed.contact_sheet import write_contact_sheet

    command_line.check_least(arguments, count=1, seed=0)
    shown = write_contact_sheet(
        arguments.path, arguments.picture, count=arguments.count, seed=arguments.seed
    )
    print(f"{arguments.picture}: {shown} images")


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `bench`."""
    parser.add_argument("path", help="directory of the set, or its URL")
    parser.add_argument("--resolution", type=int, help="deliver at this edge (default: as stored)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes (default: all cores)",
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--device", default="cpu", help="where batches are delivered: cpu, cuda")
    parser.set_defaults(command=_bench)


def _bench(arguments: argparse.Namespace) -> None:
    from data_pipelines.bench import measure_all
    from data_pipelines.datasets import box_factor
    from data_pipelines.packed.reader import ShardedImages

    command_line.check_least(arguments, resolution=1, batch_size=1, workers=1, seconds=0.001)
    check_no_credentials(arguments.path)
    _check_device(arguments.device)
    stored = ShardedImages(arguments.path).info.resolution
    resolution = arguments.resolution or stored
    if resolution == ORIGINAL:
        raise ValueError(f"{arguments.path} holds images of any size; add --resolution")
    box_factor(stored, resolution, arguments.path)
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


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"device={name}: {reason}; set --device cpu") from None
