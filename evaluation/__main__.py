"""Command line of the evaluation: samples, references, results.

Under torchrun (or Slurm) the same commands share their work over all ranks.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch

from dist_train.runtime.launch import launch_ranks, should_launch
from dist_train.runtime.world import World, init_world
from evaluation.compare import format_comparison, write_plots
from evaluation.detector_kinds import DETECTORS, build_detector
from evaluation.detectors import DetectorConfig
from evaluation.export import export, write_batch
from evaluation.failures import is_lost_contact, lose_contact, refuse
from evaluation.formats import read_statistics
from evaluation.generate import GeneratedImages, SamplePlan, parse_seeds
from evaluation.grid import make_grid, write_image
from evaluation.images import ImageSet, open_images
from evaluation.inception_weights import convert_inception
from evaluation.kept import write_samples
from evaluation.options import parse
from evaluation.postprocess import PostProcess
from evaluation.protocols import PROTOCOLS, Protocol, describe_protocol, find_protocol
from evaluation.reference import make_reference, read_reference, write_reference
from evaluation.results import find_results
from evaluation.run import Evaluation, evaluate
from evaluation.table import format_repeats, format_table
from models.snapshot import Snapshot, read_snapshot

TIMEOUT = timedelta(hours=2)
NUM_FEATURES = 10_000
USUAL_SAMPLES = 50_000

Work = Callable[[World], None]
"""What the ranks do together, after the command line has been checked."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0 is success, 2 follows one line about what was wrong, 76 one about a rank that was lost.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    args = parse(words)
    world = None
    try:
        if hasattr(args, "ranks") and "RANK" in os.environ:
            world = init_world(TIMEOUT)
        work = COMMANDS[args.command](args)
        if work is None:
            return 0
        if should_launch(args.ranks):
            return launch_ranks("evaluation", words, args.ranks)
        world = world or init_world(TIMEOUT)
        work(world)
        world.close()
    except (ValueError, OSError) as error:
        return refuse(error, world)
    except RuntimeError as error:
        if world is None or not is_lost_contact(error):
            raise
        return lose_contact(world)
    return 0


def sample_command(args: argparse.Namespace) -> Work:
    """Write samples as image files, and a grid picture."""
    paths, overrides = split_overrides(args.source)
    snapshots = read_snapshots(paths, overrides)
    plan = plan_of(args)

    def work(world: World) -> None:
        generated = GeneratedImages(snapshots, plan, world.device)
        kept = write_samples(generated, args.out, world, shard_images=args.shard_images)
        _write_grid(args, kept, world)
        grid = f", grid {args.grid}" if args.grid else ""
        _say(world, f"{args.out}: {len(kept)} images{grid}")

    return work


def reference_command(args: argparse.Namespace) -> Work:
    """Compute the reference statistics of a set of images."""
    images = open_images(args.images)
    config = detector_of(args)

    def work(world: World) -> None:
        detector = build_detector(config, world.device)
        usual = DETECTORS[config.name].reference_taps_of(detector)
        made = make_reference(
            images,
            detector.with_taps(args.taps.split(",") if args.taps else usual),
            args.out,
            world,
            num_features=args.features or NUM_FEATURES,
            batch_size=args.batch_size,
        )
        _say(world, f"{args.out}: {'computed' if made else 'reused'}, {len(images)} images")

    return work


def run_command(args: argparse.Namespace) -> Work:
    """Evaluate snapshots or images against a reference."""
    configs = evaluations_of(args)

    def work(world: World) -> None:
        results = [evaluate(config, world) for config in configs]
        if args.grid:
            _write_grid(args, open_images(configs[0].images or args.keep_images), world)
        files = ", ".join(str(config.out) for config in configs)
        _say(world, f"{files}\n{format_table(results)}{format_repeats(results)}")

    return work


def table_command(args: argparse.Namespace) -> None:
    """Print results side by side."""
    print(format_table(find_results(args.results)))


def compare_command(args: argparse.Namespace) -> None:
    """Print and plot results over images seen, NFE and eta."""
    results = find_results(args.runs)
    print(format_comparison(results))
    if args.plots:
        for path in write_plots(results, args.plots):
            print(path)


def export_command(args: argparse.Namespace) -> None:
    """Write our statistics, or images, as a file of another tool."""
    if args.format == "adm_samples":
        write_batch(open_images(args.source), args.out)
    else:
        images = open_images(args.images) if args.images else None
        export(read_reference(args.source), args.out, args.format, images)
    print(f"{args.out}: {args.format}")


def import_command(args: argparse.Namespace) -> None:
    """Convert another tool's statistics file to ours."""
    pipeline = args.pipeline or DETECTORS[args.detector].pipelines[0]
    features = read_statistics(args.statistics, {"name": args.detector, "pipeline": pipeline})
    write_reference(args.out, features, args.features)
    print(f"{args.out}: {', '.join(features.gaussians)}; taken to be of the pipeline {pipeline}")


def convert_command(args: argparse.Namespace) -> None:
    """Convert Inception weights to safetensors."""
    digest = convert_inception(args.weights, args.out, args.sha256)
    print(f"{args.out}: 472 tensors, sha256 of the tensors {digest}")


def protocols_command(args: argparse.Namespace) -> None:
    """List the protocols."""
    del args
    print("\n".join(map(describe_protocol, PROTOCOLS.values())))


def evaluations_of(args: argparse.Namespace) -> list[Evaluation]:
    """Return what `run` is asked for: one evaluation, or as many as the protocol repeats."""
    protocol = find_protocol(args.protocol) if args.protocol else None
    repeats = protocol.repeats if protocol and not args.seeds else 1
    return [
        _evaluation(args, protocol, repeat if repeats > 1 else None) for repeat in range(repeats)
    ]


def _evaluation(
    args: argparse.Namespace, protocol: Protocol | None, repeat: int | None
) -> Evaluation:
    """Return what `run` is asked for; options win over the protocol's settings."""
    paths, overrides = split_overrides(args.source)
    are_snapshots = all(is_snapshot(path) for path in paths)
    if args.grid and are_snapshots and not args.keep_images:
        raise ValueError("--grid needs the generated images: add --keep-images FOLDER")
    if not are_snapshots and (len(paths) != 1 or overrides):
        raise ValueError("give snapshots (a relay's stages in order) or one set of images")
    snapshots = read_snapshots(paths, overrides) if are_snapshots else ()
    out: Path = args.out or default_out(snapshots, protocol.name if protocol else args.detector)
    if repeat is not None:
        out = out.with_stem(f"{out.stem}-{repeat}")
    return Evaluation(
        out=out,
        reference=args.reference,
        snapshots=snapshots,
        images=None if are_snapshots else paths[0],
        plan=plan_of(args, protocol, repeat or 0) if are_snapshots else None,
        keep_images=args.keep_images,
        shard_images=args.shard_images,
        detector=detector_of(args, protocol),
        metrics=metrics_of(args, protocol),
        protocol=protocol,
        bootstrap=args.bootstrap,
        batch_size=args.batch_size,
        reference_pipeline=args.reference_pipeline or (protocol.pipeline if protocol else ""),
        num_features=args.features or (protocol.num_features if protocol else NUM_FEATURES),
        title=args.title,
    )


def _write_grid(args: argparse.Namespace, images: ImageSet, world: World) -> None:
    if args.grid and world.rank == 0:
        pictures = images.batch(range(min(len(images), args.grid_images)))
        write_image(args.grid, make_grid(pictures, upscale=args.grid_upscale))


def metrics_of(args: argparse.Namespace, protocol: Protocol | None) -> tuple[str, ...]:
    """Return the metrics that are asked for, or those of the protocol."""
    if args.metrics:
        return tuple(args.metrics.split(","))
    return protocol.metrics if protocol else ()


COMMANDS: dict[str, Callable[[argparse.Namespace], Work | None]] = {
    "sample": sample_command,
    "reference": reference_command,
    "run": run_command,
    "table": table_command,
    "compare": compare_command,
    "protocols": protocols_command,
    "export": export_command,
    "import": import_command,
    "convert": convert_command,
}


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


def default_out(snapshots: Sequence[Snapshot], name: str) -> Path:
    """Return RUN/evaluation/SNAPSHOT-NAME.json. Raises ValueError outside of run folders."""
    if not snapshots or snapshots[-1].path.parent.name != "snapshots":
        raise ValueError("--out is missing: name the result file (only runs have a place for it)")
    path = snapshots[-1].path
    return path.parent.parent / "evaluation" / f"{path.name}-{name}.json"


def is_snapshot(path: Path) -> bool:
    """Tell a snapshot or run folder from a set of images."""
    return (path / "snapshot.json").exists() or (path / "snapshots").is_dir()


def plan_of(
    args: argparse.Namespace, protocol: Protocol | None = None, repeat: int = 0
) -> SamplePlan:
    """Return which samples are drawn; a protocol decides what no option does."""
    names = ("quantisation", "retouch", "codec")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    post = dataclasses.replace(protocol.post if protocol else PostProcess(), **given)
    usual = protocol.seeds(repeat) if protocol else tuple(range(USUAL_SAMPLES))
    seeds = parse_seeds(args.seeds) if args.seeds else usual
    return SamplePlan(seeds, args.labels, args.batch_size, post)


def detector_of(args: argparse.Namespace, protocol: Protocol | None = None) -> DetectorConfig:
    """Return the detector that is asked for, or that a protocol needs."""
    name = protocol.detector if protocol else args.detector
    pipeline = args.pipeline or (protocol.pipeline if protocol else "")
    return DetectorConfig(name, args.weights, pipeline, args.weights_sha256, args.compile)


def _say(world: World, text: str) -> None:
    if world.rank == 0:
        print(text, flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
