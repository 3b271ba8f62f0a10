"""Protocols, results, tables and comparisons."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dist_train.runtime.world import World
from evaluation.arguments import parse
from evaluation.detectors.base import Detector, DetectorConfig
from evaluation.detectors.registry import DETECTORS
from evaluation.image_sets.files import encode_image
from evaluation.image_sets.grid import make_grid
from evaluation.image_sets.seeds import format_seeds, parse_seeds
from evaluation.metrics.registry import METRICS, MetricRequest, MetricSettings, parse_request
from evaluation.metrics.statistics import FeatureSet, gaussian_of
from evaluation.protocols import PROTOCOLS, find_protocol
from evaluation.reference.reference import check_comparable
from evaluation.request import default_title, evaluations_of, grid_of, spec_of
from evaluation.results.compare import axis_value, format_comparison
from evaluation.results.plots import draw, lines_of, published_values, write_plots
from evaluation.results.result_file import new_result, resumed
from evaluation.results.table import format_repeats, format_table
from evaluation.samples.generate import SampleSpec
from evaluation.samples.postprocess import PostProcess
from evaluation.samples.sample_dir import SampleRequest
from models.rdm.config import EdmConfig
from models.rdm.unet import UNetConfig
from models.snapshot import write_snapshot

RNG = np.random.default_rng(0)
CPU = torch.device("cpu")
ALONE = World(rank=0, local_rank=0, size=1, device=CPU)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_names_metrics_that_exist(name: str) -> None:
    protocol = find_protocol(name)
    kind = DETECTORS[protocol.detector]
    assert protocol.preprocessing in kind.preprocessings
    for text in protocol.metrics:
        assert text.split(":")[0] in METRICS
    for key in {key for row in protocol.published for key in row.values}:
        metric = key.split(".")[0]
        names = [parse_name(text, protocol.detector) for text in protocol.metrics]
        assert metric in names, f"{key} is published but not computed"


def parse_name(text: str, detector: str) -> str:
    kind, _, tap = text.partition(":")
    return MetricRequest(kind, tap).name(detector)


def test_rdm_draws_exactly_50_images_of_each_class() -> None:
    protocol = find_protocol("rdm_imagenet256")
    seeds = protocol.seeds()
    assert (seeds[0], seeds[-1]) == (10_000, 59_999)
    labels = SampleSpec(seeds).labels_of(seeds, range(1000))
    assert labels is not None
    assert torch.bincount(labels).eq(protocol.per_class).all()


def test_every_faithful_protocol_has_a_clean_variant() -> None:
    for name in ("rdm_imagenet256", "rdm_celebahq256", "wavediff_cifar10", "wavediff_celebahq1024"):
        clean = find_protocol(f"{name}_clean")
        assert clean.preprocessing == "tf1"
        assert clean.post == PostProcess()
        assert clean.num_samples == find_protocol(name).num_samples
    with pytest.raises(ValueError, match="is not one of rdm_imagenet256"):
        find_protocol("fid50k")


def test_edm_ranges_are_disjoint() -> None:
    protocol = find_protocol("edm")
    ranges = [set(protocol.seeds(repeat)) for repeat in range(protocol.repeats)]
    assert len(set.union(*ranges)) == 3 * 50_000


def test_options_override_a_protocol() -> None:
    arguments = ["run", "runs/a", "--reference", "r", "--protocol", "wavediff_cifar10"]
    protocol = find_protocol("wavediff_cifar10")
    assert spec_of(parse(arguments), protocol).post.codec == "jpeg"
    spec = spec_of(parse([*arguments, "--codec", "png", "--seeds", "0-9"]), protocol)
    assert (spec.post.codec, len(spec.seeds)) == ("png", 10)


def test_a_request_is_groups_of_settings_and_one_evaluation_per_range_of_seeds(
    tmp_path: Path,
) -> None:
    arguments = ["run", "runs/a", "--reference", str(tmp_path / "r"), "--protocol", "edm"]
    options = ["--out", "o.json", "--weights", "w.pth", "--bootstrap", "9", "--batch-size", "8"]
    requests = evaluations_of(parse([*arguments, *options]), inputs=False)
    assert [request.out.name for request in requests] == ["o-0.json", "o-1.json", "o-2.json"]
    first = requests[0]
    assert first.detector == DetectorConfig("inception", "w.pth", "tf1")
    assert first.metrics == MetricSettings(("fd:pool",), bootstrap=9)
    assert (first.reference.preprocessing, first.reference.batch_size) == ("tf1", 8)
    assert [r.images.spec.seeds[0] for r in requests if isinstance(r.images, SampleRequest)] == [
        0,
        50_000,
        100_000,
    ]
    with pytest.raises(ValueError, match=r"1 image\(s\) are too few"):
        evaluations_of(parse([*arguments, *options, "--seeds", "7"]), inputs=False)
    with pytest.raises(ValueError, match="does not exist"):
        evaluations_of(parse([*arguments, *options]))


def test_ranges_of_seeds_are_summed_up() -> None:
    text = format_repeats([result(1, 2.0), result(1, 3.0)])
    assert "fd_effnet_lite0_block4.distance: mean 2.5, minimum 2" in text
    assert format_repeats([result(1, 2.0)]) == ""


def test_jpeg_and_retouch_are_switches() -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(PostProcess().apply(images), images)
    assert not torch.equal(PostProcess(codec="jpeg").apply(images), images)
    brighter = PostProcess(retouch="rdm_imagenet").apply(images)
    assert (brighter >= images).all()
    assert encode_image(images[0], "jpeg")[:2] == b"\xff\xd8"


@pytest.mark.parametrize("text", ["0-3", "5", "0-3,7,9-12"])
def test_seeds_come_back(text: str) -> None:
    assert format_seeds(parse_seeds(text)) == text


@pytest.mark.parametrize(
    "text", ["", "a", "5-3", "-1", "1,,2", "4294967296", "0-99999999999", "0-9999999,5"]
)
def test_bad_seeds_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="seeds"):
        parse_seeds(text)


ENHANCED = 'sampling.enhance=[["brightness",1.06]]'


@pytest.mark.parametrize(
    ("options", "classes", "message"),
    [
        ([ENHANCED, "--retouch", "rdm_imagenet"], 0, "enhanced already; give --retouch none"),
        ([ENHANCED, "--quantisation", "adm"], 0, "comes too late for sampling.enhance"),
        ([ENHANCED, "--protocol", "rdm_celebahq256"], 0, "enhanced already"),
        (["--labels", "random"], 0, "--labels random needs a model with classes"),
        (["--shard-images", "5"], 0, "add --keep-images DIR"),
        (["sampling.guidance.scale=2"], 0, "needs classes"),
        (["sampling.eta=0.1"], 0, "unknown setting"),
        (["sampling.churn.amount=NaN"], 3, "churn.amount=nan"),
        (["--grid", "g.png", "--keep-images", "d", "--grid-images", "0"], 3, "--grid-images=0"),
        (["--batch-size", "0"], 3, "batch_size=0 must be positive"),
        ([ENHANCED, "--retouch", "none"], 0, ""),
        (["--labels", "random", "--retouch", "rdm_imagenet"], 3, ""),
    ],
    ids=str,
)
def test_settings_that_double_or_miss_each_other_are_rejected(
    tmp_path: Path, options: list[str], classes: int, message: str
) -> None:
    unet = UNetConfig(
        resolution=8, model_channels=8, channel_mult=(1,), num_blocks=1, label_dim=classes
    )
    objective = EdmConfig(unet=unet)
    weights = objective.build().build_networks()["denoiser"].state_dict()
    write_snapshot(
        tmp_path / "s", weights, objective=objective, network="denoiser", images_seen=0,
        ema="none", provenance={},
    )  # fmt: skip
    (tmp_path / "r").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "r/0.png")
    arguments = ["run", str(tmp_path / "s"), "--reference", str(tmp_path / "r"), "--out", "o.json"]

    def ask() -> None:
        args = parse([*arguments, "--seeds", "0-3", *options])
        evaluations_of(args)
        grid_of(args)

    if not message:
        return ask()
    with pytest.raises(ValueError, match=re.escape(message)):
        ask()


def test_random_labels_depend_on_the_seed_alone() -> None:
    spec = SampleSpec(tuple(range(1000)), labels="random")
    labels = spec.labels_of(range(1000), range(10))
    assert labels is not None
    again = spec.labels_of([7, 3], range(10))
    assert again is not None
    assert again.tolist() == [labels[7], labels[3]]
    assert torch.bincount(labels, minlength=10).min() > 60


def result(seen: int, distance: float, digest: str = "a") -> dict[str, Any]:
    reference = feature_set()
    made = new_result(
        title=f"run at {seen}",
        images={
            "digest": str(seen),
            "num_images": 10,
            "models": [{"images_seen": seen, "objective": {"sampling": {"eta": 0.2}}}],
        },
        samples=None,
        resolution=32,
        reference=reference,
        detector=Detector(reference.meta["detector"], {"block4": 4}, lambda _: dict, CPU),
        settings={"resamples": 0},
        protocol=None,
    )
    made["nfe"] = 18
    made["reference"]["digest"] = digest
    values = {"distance": distance}
    made["metrics"]["fd_effnet_lite0_block4"] = {"values": values, "seconds": 1.0}
    return made


def feature_set(n: int = 20) -> FeatureSet:
    rows = RNG.normal(size=(n, 4)).astype(np.float32)
    meta = {"detector": {"name": "effnet_lite0", "pipeline": "half_pixel112"}}
    return FeatureSet(meta, n, {"block4": gaussian_of(rows)}, {"block4": rows}, range(n))


def test_comparison_orders_by_images_seen_and_plots(tmp_path: Path) -> None:
    results = [result(2000, 5.0), result(1000, 9.0)]
    lines = format_comparison(results).splitlines()
    assert lines[2].startswith("run at 1000")
    assert (axis_value(results[0], "NFE"), axis_value(results[0], "eta")) == (18.0, 0.2)
    png, svg = write_plots(results, tmp_path / "plots")
    assert png.name == "fd_effnet_lite0_block4_by_images_seen.png"
    with Image.open(png) as image:
        assert image.size == (960, 630)
    assert "<svg" in svg.read_text()


FD = ("fd_effnet_lite0_block4", "distance")


def test_runs_are_lines_of_their_own() -> None:
    results = [result(seen, 1.0 + seen / 1000) for seen in (1000, 2000, 1000, 2000)]
    for number, entry in enumerate(results):
        entry["images"]["models"][0]["path"] = f"runs/run{number // 2}/snapshots/{number:012d}"
    lines = lines_of(results, "images seen", FD)
    assert {line: [(p.x, p.y) for p in points] for line, points in lines.items()} == {
        "run run0": [(1000, 2.0), (2000, 3.0)],
        "run run1": [(1000, 2.0), (2000, 3.0)],
    }


def test_error_bars_are_bootstrap_intervals_or_the_range_over_repeats() -> None:
    results = [result(1000, 9.0), result(2000, 5.0), result(2000, 6.0)]
    for entry in results:
        entry["title"] = "run"
    results[0]["metrics"][FD[0]]["interval95"] = [8.5, 9.75]
    (points,) = lines_of(results, "images seen", FD).values()
    assert [(p.x, p.low, p.y, p.high) for p in points] == [
        (1000, 8.5, 9.0, 9.75),
        (2000, 5.0, 5.5, 6.0),
    ]


def test_plots_show_published_values_on_log_axes_where_values_span_decades() -> None:
    results = [result(seen, distance) for seen, distance in ((100, 90.0), (5000, 3.0))]
    for entry in results:
        entry["title"] = "run"
        entry["protocol"] = {"name": "paper", "published": {".".join(FD): 1.87}}
    published = published_values(results, FD)
    (axes,) = draw(lines_of(results, "images seen", FD), "images seen", FD, published).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "published (paper): 1.87",
        "run",
    ]
    (near,) = draw(lines_of(results[:1], "NFE", FD), "NFE", FD).axes
    assert (near.get_xscale(), near.get_yscale()) == ("linear", "linear")


def test_plots_without_matplotlib_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"pip install 'relaywave\[plots\]'"):
        write_plots([result(2000, 5.0), result(1000, 9.0)], tmp_path)


def test_titles_are_run_and_images_seen_or_the_name_of_the_images() -> None:
    assert default_title(Path("runs/a/snapshots/000000001000")) == "a/1000"
    assert default_title(Path("data/images.zip")) == "images.zip"


def test_the_table_says_what_is_comparable() -> None:
    assert "comparable with no published FID" in format_table([result(0, 9.0), result(5, 1.0)])
    unlike = format_table([result(0, 9.0), result(5, 1.0, digest="b")])
    assert "NOT comparable with each other: these results differ in reference (a, b)." in unlike
    assert "untrained" in unlike
    assert "Warning" not in unlike
    foreign = result(5, 1.0)
    foreign["reference"] |= {"n": None, "source": "cifar10.npz"}
    assert "Warning: cifar10.npz does not record how many images" in format_table([foreign])


def test_metrics_are_reused_for_the_same_request_only() -> None:
    old, new = result(1, 2.0), result(1, 3.0)  # their references differ: features were drawn anew
    new["metrics"] = {}
    out = Path("result.json")
    with pytest.raises(ValueError, match=r"result.json holds .* another request \(reference is"):
        resumed(out, old, new)
    assert resumed(out, old, new, replace=True)["metrics"] == {}
    new["identity"] = old["identity"]
    assert resumed(out, old, new)["metrics"] == old["metrics"]
    for older in ({"identity": "x"}, {"identity": "x", "made_of": {}}):
        with pytest.raises(ValueError, match="written by an older relaywave"):
            resumed(out, older, new)


def test_references_of_another_detector_or_width_are_rejected() -> None:
    reference = feature_set()
    identity = {"name": "effnet_lite0", "pipeline": "half_pixel112", "weights_sha256": "w"}
    cpu = torch.device("cpu")
    check_comparable(Detector(identity, {"block4": 4}, lambda _: dict, cpu), reference)
    with pytest.raises(ValueError, match="has 4 features at tap block4"):
        check_comparable(Detector(identity, {"block4": 40}, lambda _: dict, cpu), reference)
    other = identity | {"name": "inception"}
    with pytest.raises(ValueError, match="name is effnet_lite0, not inception"):
        check_comparable(Detector(other, {"pool": 4}, lambda _: dict, cpu), reference)


def test_metrics_record_sizes_and_name_what_they_lack() -> None:
    gen, ref = feature_set(30), feature_set()
    request = parse_request("pr:block4", ["block4"])
    metric = request.compute(gen, ref, ALONE)
    assert (metric["n_gen"], metric["n_ref"]) == (30, 20)
    bare = FeatureSet(ref.meta, 20, ref.gaussians)
    with pytest.raises(ValueError, match="holds no features of tap 'block4'"):
        request.compute(gen, bare, ALONE)
    with pytest.raises(ValueError, match="is not one of"):
        parse_request("fid", ["block4"])
    with pytest.raises(ValueError, match="the detector has the taps block4"):
        parse_request("fd:pool", ["block4"])


def test_names_are_fid_only_for_inception() -> None:
    assert MetricRequest("fd", "pool").name("inception") == "fid"
    assert MetricRequest("fd", "head").name("effnet_lite0") == "fd_effnet_lite0_head"


def test_grids_are_nearly_square() -> None:
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 2, 2)
    grid = make_grid(images, upscale=2, gap=1)
    assert grid.shape == (3, 2 * 4 + 1, 3 * 4 + 2)
    assert grid[0, 0, 0] == 0
    assert grid[0, -1, 0] == 3
    assert grid[0, -1, -1] == 255
    with pytest.raises(ValueError, match="grid of 0 images"):
        make_grid(images[:0])
