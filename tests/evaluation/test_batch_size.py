"""Batches as large as memory takes: chosen from it, halved where it runs out, and recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from evaluation import __main__ as cli
from evaluation import agreement
from evaluation.detectors.base import Detector
from evaluation.detectors.passes import MOST, PROBE, Passes, fitting_size
from evaluation.image_sets.image_set import open_images
from models.wavediff.sampler import WaveDiffSampler
from tests.evaluation.test_commands import write_images
from tests.evaluation.test_ranks import write_generator
from tests.ranks import run_ranks

Values = dict[str, float]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))


def choose(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(agreement, "fitting_size", lambda run, device: size)


def no_memory_above(most: int, function: Callable[..., Any], number: Callable[..., int]) -> Any:
    """Return a function that runs out of memory for more images than `most`."""

    def limited(*arguments: Any) -> Any:
        if number(*arguments) > most:
            raise torch.OutOfMemoryError(f"no memory for {number(*arguments)} images")
        return function(*arguments)

    return limited


def evaluated(snapshot: Path, out: Path, *options: str) -> dict[str, Any]:
    """Evaluate 11 samples against images that were made beside `out`."""
    reference = out.with_name("reference")
    if not reference.exists():
        write_images(reference, 9, size=16)
    command = ["run", str(snapshot), "--reference", str(reference), "--out", str(out)]
    command += ["--seeds", "0-10", "--metrics", "fd:block4,kid:block4", *options]
    assert cli.main(command) == 0
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def values(result: dict[str, Any]) -> Values:
    return {name: metric["values"]["distance"] for name, metric in result["metrics"].items()}


@pytest.mark.parametrize("sizes", [(1, 11), (3, 64)])
def test_values_depend_on_the_batch_size_by_rounding_only(
    tmp_path: Path, sizes: tuple[int, int]
) -> None:
    snapshot = write_generator(tmp_path / "model", 0)
    one, other = (
        values(evaluated(snapshot, tmp_path / f"{size}.json", "--batch-size", str(size)))
        for size in sizes
    )
    assert one == pytest.approx(other, rel=2e-3)


def test_memory_that_runs_out_halves_the_passes_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = write_generator(tmp_path / "model", 0)
    expected = evaluated(snapshot, tmp_path / "a.json")
    assert "images_at_once" not in expected
    features = no_memory_above(3, Detector._features, lambda _, images: len(images))
    monkeypatch.setattr(Detector, "_features", features)
    draw = no_memory_above(16, WaveDiffSampler.generate, lambda _, draws, labels: len(draws))
    monkeypatch.setattr(WaveDiffSampler, "generate", draw)
    result = evaluated(snapshot, tmp_path / "again" / "b.json")
    assert result["images_at_once"] == {"detector": 3, "sampling": 16}
    assert values(result) == pytest.approx(values(expected), rel=2e-3)
    assert result["identity"] == expected["identity"]
    said = capsys.readouterr().err
    assert said.count("sampling has no memory for") == 2
    assert "the detector has no memory for 6 images at once: from now on 3" in said
    again = evaluated(snapshot, tmp_path / "again" / "b.json")
    assert again == result, "nothing is computed again"
    kept = tmp_path / "samples"
    assert cli.main(["sample", str(snapshot), "--out", str(kept), "--seeds", "0-19"]) == 0
    assert json.loads((kept / "samples.json").read_text())["images_at_once"] == 16
    assert cli.main(["sample", str(snapshot), "--out", str(kept), "--seeds", "0-19"]) == 0
    assert json.loads((kept / "samples.json").read_text())["images_at_once"] == 16


def test_what_does_not_even_take_one_image_is_an_error() -> None:
    passes = Passes("the detector")
    compute = no_memory_above(0, lambda rows: rows, lambda rows: rows.stop - rows.start)
    with pytest.raises(torch.OutOfMemoryError, match="no memory for 1 images"):
        passes.run(compute, 5)


@pytest.mark.parametrize(
    ("count", "most", "sizes"), [(5, None, [5]), (5, 2, [2, 2, 1]), (0, 2, [])]
)
def test_passes_cover_a_batch(count: int, most: int | None, sizes: list[int]) -> None:
    found = Passes("x").run(lambda rows: rows.stop - rows.start, count, most)
    assert found == sizes


def test_auto_is_a_fixed_size_on_a_cpu_and_no_more_than_a_ranks_share(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 12)
    command = ["run", str(images), "--reference", str(images), "--batch-size", "auto", "--out"]
    assert cli.main([*command, str(tmp_path / "a.json")]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["made_of"]["batch size"] == 8


def test_auto_takes_what_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another day less memory is free; that does not make it another request."""
    snapshot, out, kept = (
        write_generator(tmp_path / "model", 0),
        tmp_path / "r.json",
        tmp_path / "k",
    )
    options = ("--batch-size", "auto", "--keep-images", str(kept))
    choose(monkeypatch, 4)
    first = evaluated(snapshot, out, *options)
    assert first["made_of"]["batch size"] == 4
    assert json.loads((kept / "samples.json").read_text())["identity"]["batch_size"] == 4
    choose(monkeypatch, 2)
    assert evaluated(snapshot, out, *options) == first
    assert evaluated(snapshot, out, *options, "--dry-run") == first
    assert evaluated(snapshot, out, *options, "--replace") == first, "scheduled ones have it"
    out.unlink()
    assert evaluated(snapshot, out, *options)["made_of"]["batch size"] == 4, "as the samples"
    sampling = ["sample", str(snapshot), "--seeds", "0-10", "--batch-size", "auto", "--out"]
    assert cli.main([*sampling, str(kept)]) == 0
    assert cli.main([*sampling, str(kept), "--dry-run"]) == 0
    assert cli.main([*sampling, str(tmp_path / "new")]) == 0
    written = json.loads((tmp_path / "new" / "samples.json").read_text())
    assert written["identity"]["batch_size"] == 2


def test_protocols_of_equal_samples_still_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluation.samples.generate import GeneratedImages

    choose(monkeypatch, 4)
    drawn: list[int] = []
    draw = GeneratedImages.draw
    monkeypatch.setattr(
        GeneratedImages, "draw", lambda self, rows: drawn.extend(rows) or draw(self, rows)
    )
    snapshot, reference = write_generator(tmp_path / "model", 0), tmp_path / "reference"
    write_images(reference, 9, size=16)
    command = ["run", str(snapshot), "--reference", str(reference), "--seeds", "0-10"]
    command += ["--batch-size", "auto", "--out", str(tmp_path / "r.json")]
    command += [
        "--detector",
        "effnet_lite0,inception",
        "--weights",
        f"inception={tmp_path}/w.safetensors",
    ]
    command += ["--metrics", "effnet_lite0=fd:block4,inception=fd:64"]
    write_inception(tmp_path / "w.safetensors")
    assert cli.main(command) == 0
    assert sorted(drawn) == list(range(11))


def write_inception(path: Path) -> None:
    from evaluation.detectors.inception import FidInception

    weights = {k: v for k, v in FidInception().state_dict().items() if v.is_floating_point()}
    save_file(weights, path)


def _reference(directory: Path) -> None:
    import os

    os.environ["RELAYWAVE_CACHE"] = str(directory / "cache")
    rank = int(os.environ["RANK"])
    with pytest.MonkeyPatch.context() as patch:
        choose(patch, 4 >> rank)
        command = ["reference", str(directory / "images"), str(directory / "r.npz")]
        assert cli.main([*command, "--batch-size", "auto"]) == 0


@pytest.mark.distributed
def test_ranks_agree_on_the_least(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 12)
    run_ranks(2, _reference, tmp_path)
    (entry,) = (tmp_path / "cache" / "features").glob("*/entry.json")
    assert json.loads(entry.read_text())["batch_size"] == 2
    with np.load(tmp_path / "r.npz") as file:
        assert file["n"] == len(open_images(tmp_path / "images"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("0", "batch_size=0 must be positive"), ("all", "invalid number, nor auto, value: 'all'")],
)
def test_other_sizes_are_rejected(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = write_generator(tmp_path / "model", 0)
    command = ["sample", str(snapshot), "--out", str(tmp_path / "s"), "--batch-size", text]
    try:
        code: Any = cli.main(command)
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("free", "size"), [(80e9, MOST), (1e9, 64), (2.9e8, 16), (1.0, 1)])
def test_the_size_follows_from_free_memory(
    monkeypatch: pytest.MonkeyPatch, free: float, size: int
) -> None:
    """Each image takes 10 MB of activations beside 1 GB of weights."""
    peak = 0

    def run(count: int) -> None:
        nonlocal peak
        peak = int(1e9 + count * 1e7)

    assert fitting_size(run, torch.device("cpu")) == 64
    fake = {
        "memory_allocated": lambda device: int(1e9),
        "max_memory_allocated": lambda device: peak,
        "reset_peak_memory_stats": lambda device: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda device: (int(free), int(80e9)),
    }
    for name, function in fake.items():
        monkeypatch.setattr(torch.cuda, name, function)
    assert fitting_size(run, torch.device("cuda")) == size
    assert peak == 1e9 + PROBE * 1e7


@pytest.mark.gpu
def test_a_gpu_takes_the_size_that_follows_from_its_memory() -> None:
    device = torch.device("cuda")
    weights = torch.randn(1 << 12, 1 << 12, device=device)

    def run(count: int) -> Tensor:
        return torch.randn(count, 1 << 12, 1 << 9, device=device).transpose(1, 2) @ weights

    size = fitting_size(run, device)
    assert size & (size - 1) == 0
    run(size)
