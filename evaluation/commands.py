"""What each sub-command does, once its command line is parsed.

A command checks what it can and returns the work that ranks share, or does its work at once and
returns None.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from dist_train.runtime.world import World
from evaluation.agreement import (
    R,
    agree,
    agree_on_batches,
    agree_on_samples,
    check_alike,
)
from evaluation.demo.model import DemoModel
from evaluation.demo.page import serve
from evaluation.detectors.inception_weights import convert_inception
from evaluation.detectors.passes import AUTO
from evaluation.detectors.registry import (
    build_detector,
    default_preprocessing,
    describe_weights,
)
from evaluation.detectors.weights import DOWNLOADS, configured_weights, weights_file
from evaluation.evaluate import evaluate
from evaluation.features.store import entries, features_dir, remove
from evaluation.image_sets.grid import write_grid
from evaluation.image_sets.image_set import open_images
from evaluation.protocols import PROTOCOLS, describe_protocol
from evaluation.reference.exporters import export, write_batch
from evaluation.reference.importers import read_statistics
from evaluation.reference.reference import STATISTICS_OR_IMAGES, feature_cache, make_reference
from evaluation.reference.statistics_file import read_reference, write_reference
from evaluation.request import (
    evaluations_of,
    grid_of,
    new_reference_of,
    read_snapshots,
    result_files,
    samples_of,
    sheet_of,
    split_overrides,
    timing_of,
)
from evaluation.results.compare import format_comparison
from evaluation.results.plots import write_plots
from evaluation.results.result_file import find_results
from evaluation.results.table import format_repeats, format_table
from evaluation.samples.sample_dir import SampleRequest, open_samples
from evaluation.samples.timing import measure
from evaluation.sheets.make import make_sheet
from evaluation.sheets.sheet import record_path
from evaluation.sweep import sweep_dir, sweep_points, write_sweep
from models.command_line import check_least, say
from models.safe_files.atomic import new_file
from models.safe_files.nearest import check_there
from models.snapshot import sampled_classes

Work = Callable[[World], None]
"""What the ranks do together, after the command line has been checked."""


def sample(args: argparse.Namespace) -> Work:
    """Write samples as image files, and a grid picture."""
    request, grid = samples_of(args), grid_of(args)

    def work(world: World) -> None:
        (agreed,) = _in_batches(args, [agree_on_samples(request, world)], world)
        _say_untrained(world, agreed)
        samples = open_samples(agreed, world)
        if grid and world.rank == 0:
            write_grid(grid, samples)
        _say(world, f"{args.out}: {len(samples)} images{f', grid {grid.path}' if grid else ''}")

    return work


def reference(args: argparse.Namespace) -> Work:
    """Compute the reference statistics of a set of images."""
    request = new_reference_of(args)
    images = request.images
    assert images is not None

    def work(world: World) -> None:
        detector = world.attempt(lambda: build_detector(request.detector, world.device))
        detector = detector.with_taps(request.taps_of(detector))
        check_alike([request], world)
        (agreed,) = _in_batches(args, [request], world)
        made = make_reference(images, agreed.settings, detector, args.out, world)
        _say(world, f"{args.out}: {'computed' if made else 'reused'}, {len(images)} images")

    return work


def run(args: argparse.Namespace) -> Work:
    """Evaluate snapshots or images against a reference."""
    requests, grid = evaluations_of(args), grid_of(args)

    def work(world: World) -> None:
        agreed = _in_batches(args, agree(requests, world), world)
        images = agreed[0].images
        if isinstance(images, SampleRequest):
            _say_untrained(world, images)
        results = evaluate(agreed, world)
        if grid and world.rank == 0:
            stored = open_images(args.keep_images) if isinstance(images, SampleRequest) else images
            write_grid(grid, stored)
        files = ", ".join(map(str, result_files(agreed)))
        _say(world, f"{files}\n{format_table(results)}{format_repeats(results)}")

    return work


def sweep(args: argparse.Namespace) -> Work:
    """Evaluate a model with each point of a grid, and write tables of all."""
    points, out = sweep_points(args), sweep_dir(args)

    def work(world: World) -> None:
        agreed = agree([point.evaluation for point in points], world)
        agreed = _in_batches(args, agreed, world)
        if isinstance(agreed[0].images, SampleRequest):
            _say_untrained(world, agreed[0].images)
        results = evaluate(agreed, world)
        if world.rank == 0 and not args.point:
            write_sweep(out, points, results)
        _say(world, f"{out}\n{format_table(results, places=[p.settings for p in points])}")

    return work


def measure_time(args: argparse.Namespace) -> Work:
    """Measure the running time of a model's sampler on one device."""
    request = timing_of(args)

    def work(world: World) -> None:
        if world.size > 1:
            raise ValueError("a running time is of one device; leave the other ranks out")
        times = measure(request, world.device)
        _say(
            world,
            f"{request.out}: {times.seconds:.4g} s per batch of {times.batch_size}, mean of"
            f" {times.repeats} on {times.device}",
        )

    return work


def demo(args: argparse.Namespace) -> Work:
    """Draw samples of a model, or of two side by side, in a browser."""
    check_least(args, port=0)
    sources = [args.source, args.beside] if args.beside else [args.source]
    stages = [read_snapshots(*split_overrides(source)) for source in sources]

    def work(world: World) -> None:
        if world.size > 1:
            raise ValueError("a page is of one process; leave the other ranks out")
        serve([DemoModel(stage, world.device) for stage in stages], args.host, args.port)

    return work


def sheet(args: argparse.Namespace) -> Work:
    """Draw a sheet of images, and write what it shows."""
    request = sheet_of(args)

    def work(world: World) -> None:
        check_alike([request], world)
        make_sheet(request, world)
        _say(world, f"{request.out}, {record_path(request.out)}")

    return work


def table(args: argparse.Namespace) -> None:
    """Print results side by side."""
    print(format_table(find_results(args.results), args.format))


def compare(args: argparse.Namespace) -> None:
    """Print and plot results over images seen, NFE and eta."""
    results = find_results(args.runs)
    print(format_comparison(results, args.format))
    if args.plots:
        for path in write_plots(results, args.plots):
            print(path)


def gc(args: argparse.Namespace) -> None:
    """Show the features that are kept, and remove those that were not used for long."""
    check_least(args, older_than=0)
    for path in args.stores:
        check_there(path, "a run, or a directory of results")
    stores = [features_dir(path) for path in args.stores]
    for store in stores or [feature_cache()]:
        found = entries(store)
        print(f"{store}: {len(found)} entries, {sum(e.size for e in found) / 1e9:.2f} GB")
        for entry in found:
            is_old = args.older_than is not None and entry.days >= args.older_than
            why = remove(entry) if is_old else "not old"
            note = f"  ({why})" if is_old and why else ""
            print(f"{'kept   ' if why else 'removed'} {entry.describe()}{note}")


def protocols(args: argparse.Namespace) -> None:
    """List the protocols."""
    del args
    print("\n".join(map(describe_protocol, PROTOCOLS.values())))


def weights(args: argparse.Namespace) -> None:
    """List the weights files of detectors: who needs them, where they are, and whether complete."""
    del args
    there = configured_weights()
    print(f"{weights_file()}: {', '.join(there) or 'no weights files are named'}")
    for name, downloads in DOWNLOADS.items():
        protocols = [p.name for p in PROTOCOLS.values() if p.detector == name]
        print(f"{name}: needed by {', '.join(protocols) or '--detector ' + name}")
        for download in downloads:
            print(f"    {download.url} (sha256 {download.sha256 or 'not published'})")
        print(f"    {describe_weights(name) if name in there else 'not named'}")


def export_statistics(args: argparse.Namespace) -> None:
    """Write our statistics, or images, as a file of another tool."""
    check_there(args.source, STATISTICS_OR_IMAGES)
    if args.format == "adm_samples":
        write_batch(open_images(args.source), args.out)
    else:
        images = open_images(args.images) if args.images else None
        export(read_reference(args.source), args.out, args.format, images)
    print(f"{args.out}: {args.format}")


def import_statistics(args: argparse.Namespace) -> None:
    """Convert another tool's statistics file to ours."""
    preprocessing = args.pipeline or default_preprocessing(args.detector)
    made_by = {"name": args.detector, "pipeline": preprocessing}
    features = read_statistics(args.statistics, made_by)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with new_file(args.out) as temporary:
        write_reference(temporary, features.thinned(args.features))
    print(f"{args.out}: {', '.join(features.gaussians)}; preprocessing assumed: {preprocessing}")


def convert(args: argparse.Namespace) -> None:
    """Convert Inception weights to safetensors."""
    check_there(args.weights, "a weights file")
    digest = convert_inception(args.weights, args.out, args.sha256)
    print(f"{args.out}: 472 tensors, sha256 of the tensors {digest}")


COMMANDS: dict[str, Callable[[argparse.Namespace], Work | None]] = {
    "sample": sample,
    "reference": reference,
    "run": run,
    "sweep": sweep,
    "time": measure_time,
    "demo": demo,
    "sheet": sheet,
    "table": table,
    "compare": compare,
    "protocols": protocols,
    "weights": weights,
    "gc": gc,
    "export": export_statistics,
    "import": import_statistics,
    "convert": convert,
}


def _in_batches(args: argparse.Namespace, requests: Sequence[R], world: World) -> list[R]:
    """Return the requests with the batch size of the command line, or that `auto` stands for."""
    return agree_on_batches(requests, world) if args.batch_size == AUTO else list(requests)


def _say_untrained(world: World, request: SampleRequest) -> None:
    """Warn of classes that are not drawn, since the snapshots were not trained on them."""
    known = request.snapshots[-1].objective.label_dim
    if (drawn := len(sampled_classes(request.snapshots))) < known and world.rank == 0:
        say(f"samples are of {drawn} of {known} classes: the others were never trained", "warning")


def _say(world: World, text: str) -> None:
    if world.rank == 0:
        print(text, flush=True)
