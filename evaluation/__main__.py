"""Command line: `python -m evaluation sample | reference | run | table`.

Under torchrun (or Slurm) the same commands share their work over all ranks.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch

from dist_train.distributed import World, init_world
from dist_train.launch import launch_ranks, should_launch
from dist_train.preemption import stop_with_launcher
from evaluation.detectors import DETECTORS, DetectorConfig
from evaluation.generate import GeneratedImages, SamplePlan, parse_seeds, write_samples
from evaluation.grid import make_grid, write_image
from evaluation.images import open_images
from evaluation.postprocess import PostProcess
from evaluation.reference import make_reference
from evaluation.run import Evaluation, evaluate, read_result
from evaluation.table import format_table
from models.snapshot import Snapshot, read_snapshot

TIMEOUT = timedelta(hours=2)
GRID_IMAGES = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, or 2 after one line about what was wrong."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv)
    try:
        if should_launch(args.ranks):
            return launch_ranks("evaluation", argv, args.ranks)
        stop_with_launcher()
        args.command(args)
    except (ValueError, OSError) as error:
        rank = os.environ.get("RANK", "0")
        prefix = "" if rank == "0" else f"rank {rank}: "
        print(f"error: {prefix}{error}", file=sys.stderr)
        return 2
    return 0


def sample_command(args: argparse.Namespace) -> None:
    """Write samples as image files, and a grid picture."""
    paths, overrides = split_overrides(args.snapshots)
    snapshots = read_snapshots(paths, overrides)
    plan = _plan(args)
    world = init_world(TIMEOUT)
    kept = write_samples(GeneratedImages(snapshots, plan, world.device), args.out, world)
    if args.grid and world.rank == 0:
        pictures = kept.batch(range(min(len(kept), args.grid_images)))
        write_image(args.grid, make_grid(pictures, upscale=args.grid_upscale))
    _say(world, f"{args.out}: {len(kept)} images" + (f", grid {args.grid}" if args.grid else ""))
    world.close()


def reference_command(args: argparse.Namespace) -> None:
    """Compute the reference statistics of a set of images."""
    images = open_images(args.images)
    config = _detector(args)
    world = init_world(TIMEOUT)
    made = make_reference(
        images,
        config.build(world.device),
        args.out,
        world,
        num_features=args.features,
        batch_size=args.batch_size,
    )
    _say(world, f"{args.out}: {'computed' if made else 'reused'}, {len(images)} images")
    world.close()


def run_command(args: argparse.Namespace) -> None:
    """Evaluate snapshots or images against a reference."""
    paths, overrides = split_overrides(args.source)
    are_snapshots = all(is_snapshot(path) for path in paths)
    if not are_snapshots and len(paths) != 1:
        raise ValueError("give snapshots (a relay's stages in order) or one set of images")
    config = Evaluation(
        out=args.out,
        reference=args.reference,
        snapshots=read_snapshots(paths, overrides) if are_snapshots else (),
        images=None if are_snapshots else paths[0],
        plan=_plan(args) if are_snapshots else None,
        keep_images=args.keep_images,
        detector=_detector(args),
        metrics=tuple(args.metrics.split(",")) if args.metrics else (),
        batch_size=args.batch_size,
        title=args.title,
    )
    world = init_world(TIMEOUT)
    result = evaluate(config, world)
    _say(world, f"{args.out}\n{format_table([result])}")
    world.close()


def table_command(args: argparse.Namespace) -> None:
    """Print results side by side."""
    print(format_table([read_result(path) for path in args.results]))


def split_overrides(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Separate paths from `key=value` overrides."""
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    paths = [Path(word) for word in words if word not in overrides]
    if not paths:
        raise ValueError("no snapshot or set of images was given")
    return paths, overrides


def read_snapshots(paths: Sequence[Path], overrides: Sequence[str]) -> tuple[Snapshot, ...]:
    """Read a model's snapshots; overrides go to the last one, `stage1:key=value` to a named one."""
    by_stage: list[list[str]] = [[] for _ in paths]
    for text in overrides:
        stage, separator, assignment = text.partition(":")
        number = stage.removeprefix("stage")
        if not (separator and stage.startswith("stage") and number.isdigit()):
            by_stage[-1].append(text)
        elif 1 <= int(number) <= len(paths):
            by_stage[int(number) - 1].append(assignment)
        else:
            raise ValueError(f"{text!r}: {len(paths)} snapshot(s) were given")
    return tuple(read_snapshot(p, changes) for p, changes in zip(paths, by_stage, strict=True))


def is_snapshot(path: Path) -> bool:
    """Tell a snapshot or run folder from a set of images."""
    return (path / "snapshot.json").exists() or (path / "snapshots").is_dir()


def _plan(args: argparse.Namespace) -> SamplePlan:
    post = PostProcess(args.quantisation, args.retouch, args.codec)
    return SamplePlan(parse_seeds(args.seeds), args.labels, args.batch_size, post)


def _detector(args: argparse.Namespace) -> DetectorConfig:
    return DetectorConfig(args.detector, args.weights, args.pipeline, args.compile)


def _say(world: World, text: str) -> None:
    if world.rank == 0:
        print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_sample(commands.add_parser("sample", help="write samples as image files"))
    _add_reference(commands.add_parser("reference", help="compute reference statistics"))
    _add_run(commands.add_parser("run", help="evaluate snapshots or images"))
    table = commands.add_parser("table", help="print results side by side")
    table.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    table.set_defaults(command=table_command, ranks=None)
    return parser


def _add_sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshots", nargs="+", metavar="SNAPSHOT|key=value")
    parser.add_argument("--out", type=Path, required=True, help="folder of the images")
    parser.add_argument("--grid", type=Path, help="also write a grid picture of the first images")
    parser.add_argument("--grid-images", type=int, default=GRID_IMAGES, help="images in the grid")
    parser.add_argument("--grid-upscale", type=int, default=1, help="whole factor of enlargement")
    _add_sampling(parser, "0-63")
    parser.set_defaults(command=sample_command)


def _add_reference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, help="packed set, folder, zip, tar or npz of images")
    parser.add_argument("out", type=Path, metavar="OUT.npz")
    parser.add_argument(
        "--features", type=int, default=10_000, help="images whose features are stored"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    _add_ranks(parser)
    _add_detector(parser)
    parser.set_defaults(command=reference_command)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", metavar="SNAPSHOT|IMAGES|key=value")
    parser.add_argument("--reference", type=Path, required=True, help="statistics file, or images")
    parser.add_argument("--out", type=Path, required=True, metavar="RESULT.json")
    parser.add_argument("--title", default="", help="name in tables")
    parser.add_argument("--metrics", default="", help="e.g. fd:block4,fd:head")
    parser.add_argument("--keep-images", type=Path, help="keep generated images in this folder")
    _add_sampling(parser, "0-49999")
    _add_detector(parser)
    parser.set_defaults(command=run_command)


def _add_sampling(parser: argparse.ArgumentParser, seeds: str) -> None:
    parser.add_argument("--seeds", default=seeds, help=f"one per image (default {seeds})")
    parser.add_argument("--batch-size", type=int, default=64, help="images per forward pass")
    parser.add_argument("--labels", choices=("balanced", "random"), default="balanced")
    parser.add_argument(
        "--retouch", choices=("none", "rdm_imagenet", "rdm_celebahq"), default="none"
    )
    parser.add_argument("--quantisation", choices=("edm", "adm"), default="edm")
    parser.add_argument("--codec", choices=("png", "jpeg"), default="png")
    _add_ranks(parser)


def _add_ranks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=int, help="processes to start here, one per GPU")


def _add_detector(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detector", choices=tuple(DETECTORS), default="effnet_lite0")
    parser.add_argument("--weights", default="", help="weights file of the detector")
    parser.add_argument("--pipeline", default="", help="input pipeline, if not the usual one")
    parser.add_argument("--compile", action="store_true", help="compile the detector's network")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
