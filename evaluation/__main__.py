"""Command line of the evaluation: samples, references, results.

Under torchrun (or Slurm) the same commands share their work over all ranks.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta

import relaywave

if __name__ == "__main__":
    relaywave.reject_hidden_packages("evaluation")

import torch

from dist_train.runtime.launch import launch_ranks, should_launch
from dist_train.runtime.world import World, init_world
from evaluation.arguments import parse
from evaluation.detectors.inception_weights import convert_inception
from evaluation.detectors.registry import DETECTORS, build_detector
from evaluation.evaluate import evaluate
from evaluation.image_sets.grid import make_grid, write_image
from evaluation.image_sets.image_set import ImageSet, open_images
from evaluation.protocols import PROTOCOLS, describe_protocol
from evaluation.rank_errors import is_lost_contact, lose_contact, refuse
from evaluation.reference.exporters import export, write_batch
from evaluation.reference.importers import read_statistics
from evaluation.reference.reference import make_reference, read_reference, write_reference
from evaluation.request import (
    NUM_FEATURES,
    detector_of,
    evaluations_of,
    plan_of,
    read_snapshots,
    split_overrides,
)
from evaluation.results.compare import format_comparison, write_plots
from evaluation.results.result_file import find_results
from evaluation.results.table import format_repeats, format_table
from evaluation.samples.generate import GeneratedImages
from evaluation.samples.sample_dir import write_samples

TIMEOUT = timedelta(hours=2)

Work = Callable[[World], None]
"""What the ranks do together, after the command line has been checked."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m evaluation") -> int:
    """Run a command; returns the exit code.

    0 is success, 2 follows one line about what was wrong, 76 one about a rank that was lost.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    args = parse(words, prog)
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


def _write_grid(args: argparse.Namespace, images: ImageSet, world: World) -> None:
    if args.grid and world.rank == 0:
        pictures = images.batch(range(min(len(images), args.grid_images)))
        write_image(args.grid, make_grid(pictures, upscale=args.grid_upscale))


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


def _say(world: World, text: str) -> None:
    if world.rank == 0:
        print(text, flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
