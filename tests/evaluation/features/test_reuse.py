"""Nothing is computed twice, and unlike requests share nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import __main__ as cli
from evaluation.detectors.base import Detector
from evaluation.features.store import entries, features_dir, trim
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The taps of every detector pass since the start of the test."""
    seen: list[tuple[str, ...]] = []
    call = Detector.__call__

    def noted(self: Detector, images: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(tuple(self.widths))
        return call(self, images)

    monkeypatch.setattr(Detector, "__call__", noted)
    return seen


def write_images(directory: Path, count: int, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    directory.mkdir(parents=True)
    for i in range(count):
        pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(directory / f"{i:03d}.png")
    return directory


def evaluate(
    images: Path, reference: Path, out: Path, metrics: str, *options: str
) -> dict[str, float]:
    command = ["run", str(images), "--reference", str(reference), "--out", str(out)]
    assert cli.main([*command, "--metrics", metrics, *options]) == 0
    result = json.loads(out.read_text())
    return {name: next(iter(m["values"].values())) for name, m in result["metrics"].items()}


def rejected(
    capsys: pytest.CaptureFixture[str], images: Path, reference: Path, out: Path, *options: str
) -> str:
    before = out.read_bytes()
    command = ["run", str(images), "--reference", str(reference), "--out", str(out)]
    assert cli.main([*command, *options]) == 2
    assert out.read_bytes() == before
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_a_new_metric_of_a_stored_tap_needs_no_pass(
    tmp_path: Path, passes: list[tuple[str, ...]]
) -> None:
    images, reference = write_images(tmp_path / "a", 9), write_images(tmp_path / "b", 9, seed=1)
    out = tmp_path / "result.json"
    first = evaluate(images, reference, out, "fd:block4")
    assert set(passes) == {("block4",)}
    passes.clear()
    both = evaluate(images, reference, out, "fd:block4,kid:block4")
    assert passes == []
    assert both["fd_effnet_lite0_block4"] == first["fd_effnet_lite0_block4"]
    evaluate(images, reference, tmp_path / "another.json", "fd:block4,fd:block10")
    assert set(passes) == {("block10",)}  # of the tap that no request had yet


def test_a_set_is_its_content_wherever_it_lies(
    tmp_path: Path, passes: list[tuple[str, ...]]
) -> None:
    images = write_images(tmp_path / "a", 6)
    evaluate(images, images, tmp_path / "r.json", "fd:block4")
    images.rename(tmp_path / "moved")
    passes.clear()
    assert cli.main(["reference", str(tmp_path / "moved"), str(tmp_path / "ref.npz")]) == 0
    assert set(passes) == {("block10", "block15", "head")}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--features", "5"], "features of the reference is 10000, not 5"),
        (["--bootstrap", "20"], "resamples is 0, not 20"),
        (["--pipeline", "half_pixel224"], "detector's pipeline is half_pixel112, not half_pixel22"),
        (["--batch-size", "4"], "batch size is 64, not 4"),
    ],
)
def test_unlike_requests_never_share_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: Sequence[str], said: str
) -> None:
    images, out = write_images(tmp_path / "a", 8), tmp_path / "result.json"
    evaluate(images, images, out, "fd:block4,pr:block4")
    assert said in rejected(capsys, images, images, out, *options)
    evaluate(images, images, out, "fd:block4", "--replace", *options)


def test_another_reference_or_other_images_are_another_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, other = write_images(tmp_path / "a", 8), write_images(tmp_path / "b", 8, seed=1)
    out = tmp_path / "result.json"
    evaluate(images, images, out, "fd:block4")
    assert "(reference is" in rejected(capsys, images, other, out, "--metrics", "fd:block4")
    assert "(images is" in rejected(capsys, other, images, out, "--metrics", "fd:block4")
    reference = tmp_path / "ref.npz"
    assert cli.main(["reference", str(images), str(reference), "--taps", "block4"]) == 0
    capsys.readouterr()
    evaluate(images, reference, out, "fd:block4")  # the same images, as a file


def test_files_of_the_same_images_with_other_numbers_of_features_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, others = write_images(tmp_path / "a", 12), write_images(tmp_path / "b", 12, seed=1)
    files = [tmp_path / f"{count}.npz" for count in (5, 8, 12)]
    for path in files:
        command = ["reference", str(others), str(path), "--taps", "block4", "--features", path.stem]
        assert cli.main(command) == 0
    out = tmp_path / "r.json"
    first = evaluate(images, files[0], out, "pr:block4")
    capsys.readouterr()
    for path in (*files[1:], others):
        assert "(reference is" in rejected(capsys, images, path, out, "--metrics", "pr:block4")
        assert cli.main(["run", str(images), "--reference", str(path), "--out", str(out),
                         "--metrics", "pr:block4", "--dry-run"]) == 2  # fmt: skip
        capsys.readouterr()
    assert evaluate(images, files[0], out, "pr:block4") == first
    full = tmp_path / "full.json"
    evaluate(images, files[2], full, "pr:block4")
    evaluate(images, others, full, "pr:block4")  # all features, as by default: the same


def label(images: Path, classes: Sequence[int]) -> None:
    pairs = [[f"{number:03d}.png", c] for number, c in enumerate(classes)]
    (images / "dataset.json").write_text(json.dumps({"labels": pairs}))


def test_other_classes_of_the_same_images_give_other_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], passes: list[tuple[str, ...]]
) -> None:
    images, others = write_images(tmp_path / "a", 16), write_images(tmp_path / "b", 16, seed=1)
    in_turn, in_order = [i % 2 for i in range(16)], [i // 8 for i in range(16)]
    out, reference = tmp_path / "r.json", tmp_path / "ref.npz"
    metrics = "fd:block4,fd_per_class:block4"
    for directory in (images, others):
        label(directory, in_turn)
    evaluate(images, others, out, metrics)
    assert cli.main(["reference", str(others), str(reference), "--taps", "block4"]) == 0
    for directory in (images, others):  # the images alone, then the reference, too
        label(directory, in_order)
        passes.clear()
        found = evaluate(images, others, out, metrics)
        assert found == evaluate(images, others, tmp_path / f"{directory.name}.json", metrics)
        assert passes == [], "features do not depend on classes"
        before = out.read_bytes()
        evaluate(images, others, out, metrics)
        assert out.read_bytes() == before
    assert cli.main(["reference", str(others), str(reference), "--taps", "block4"]) == 2
    assert "was made with the classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--taps", "block4,head"], "of the taps (['block4'], not ['block4', 'head'])"),
        (["--taps", "block4", "--features", "3"], "with the features of (8, not 3)"),
    ],
)
def test_an_existing_reference_of_other_settings_is_not_reused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: Sequence[str], said: str
) -> None:
    images, out = write_images(tmp_path / "a", 8), tmp_path / "ref.npz"
    command = ["reference", str(images), str(out)]
    assert cli.main([*command, "--taps", "block4"]) == 0
    before = out.read_bytes()
    assert cli.main([*command, *options]) == 2
    assert said in capsys.readouterr().err
    assert out.read_bytes() == before


def test_what_the_reference_lacks_is_said_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], passes: list[tuple[str, ...]]
) -> None:
    images, reference = write_images(tmp_path / "a", 8), tmp_path / "ref.npz"
    np.savez(reference, mu=np.zeros(40), sigma=np.eye(40))  # another tool's moments of one tap
    run = ["run", str(images), "--reference", str(reference), "--out", str(tmp_path / "r.json")]
    run += ["--reference-pipeline", "half_pixel112"]
    for metric, said in (("fd:head", "no moments of tap 'head'"), ("pr:block4", "features of tap")):
        assert cli.main([*run, "--metrics", metric]) == 2
        assert said in capsys.readouterr().err
    assert passes == []
    assert not (tmp_path / "r.json").exists()


def test_a_store_is_shown_trimmed_and_only_ours_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        images = write_images(tmp_path / f"images{seed}", 6, seed=seed)
        evaluate(images, images, tmp_path / f"{seed}.json", "fd:block4")
    store = tmp_path / "features"
    (entries(store)[0].path / "notes.txt").write_text("mine")
    found = entries(store)
    assert [e.record.images["path"] for e in found if e.record] == [
        str(tmp_path / f"images{seed}") for seed in range(3)
    ]
    assert all("6 images of" in entry.describe() for entry in found)
    size = sum(entry.size for entry in found)
    assert trim(store, size) == []
    assert trim(store, size - 1) == [found[0].path]
    assert [path.name for path in found[0].path.iterdir()] == ["notes.txt"]
    assert cli.main(["gc", str(tmp_path), "--older-than", "1"]) == 0
    assert "6 images of" in capsys.readouterr().out
    assert len(entries(store)) == 2
    os.utime(found[1].path / "entry.json", (0, 0))
    assert cli.main(["gc", str(tmp_path), "--older-than", "1"]) == 0
    assert not found[1].path.exists()
    assert [entry.path for entry in entries(store)] == [found[2].path]
    record = found[2].path / "entry.json"
    record.write_text("{}")  # whose it is cannot be told
    os.utime(record, (0, 0))
    assert cli.main(["gc", str(tmp_path), "--older-than", "1"]) == 0
    assert (found[2].path / "block4.npz").exists()
    assert "unreadable" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["another entry's", "a link to nothing", "a byte"])
def test_features_of_others_and_damaged_ones_are_rejected_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    images, others = write_images(tmp_path / "a", 6), write_images(tmp_path / "b", 6, seed=1)
    out = tmp_path / "result.json"
    evaluate(others, others, tmp_path / "others.json", "fd:block4")
    (theirs,) = tmp_path.glob("features/*/block4.npz")
    evaluate(images, others, out, "fd:block4")
    (ours,) = set(tmp_path.glob("features/*/block4.npz")) - {theirs}
    content = ours.read_bytes()
    ours.unlink()
    if damage == "another entry's":
        ours.write_bytes(theirs.read_bytes())
    elif damage == "a byte":
        ours.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    else:
        ours.symlink_to(tmp_path / "missing")
    said = rejected(capsys, images, others, out, "--metrics", "fd:block4,kid:block4")
    assert str(ours) in said
    assert f"delete {ours.parent}" in said
    assert not (tmp_path / "missing").exists()


def test_features_of_older_versions_are_read(tmp_path: Path, passes: list[tuple[str, ...]]) -> None:
    images, out = write_images(tmp_path / "a", 6), tmp_path / "result.json"
    first = evaluate(images, images, out, "fd:block4")
    for path in (*tmp_path.glob("features/*/*.npz"), *tmp_path.glob("cache/features/*/*.npz")):
        with np.load(path) as arrays:
            older = {name: arrays[name] for name in arrays.files if name != "entry"}
            assert len(older) < len(arrays.files)
        np.savez(path, **older)
    passes.clear()
    assert evaluate(images, images, tmp_path / "again.json", "fd:block4") == first
    assert passes == []


def test_features_of_a_run_lie_in_one_place(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "evaluation" / "project"
    (run / "evaluation" / "000000000800").mkdir(parents=True)
    other.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    expected = run / "evaluation" / "features"
    for path in (run, run / "evaluation", run / "evaluation" / "000000000800"):
        assert features_dir(path) == expected
    assert features_dir(other) == other / "features"


def test_two_jobs_at_once_on_one_uncached_reference(tmp_path: Path) -> None:
    """One computes, the other waits and reuses it; neither fails."""
    images, reference = write_images(tmp_path / "a", 12), write_images(tmp_path / "b", 12, seed=1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "evaluation", "run", str(images), "--metrics", "fd:block4"]
    command += ["--reference", str(reference), "--batch-size", "1"]
    jobs = [
        subprocess.Popen(
            [*command, "--out", str(tmp_path / f"{job}.json")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for job in range(2)
    ]
    errors = [job.communicate()[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], errors
    values = [json.loads((tmp_path / f"{job}.json").read_text())["metrics"] for job in range(2)]
    assert (
        values[0]["fd_effnet_lite0_block4"]["values"]
        == (values[1]["fd_effnet_lite0_block4"]["values"])
    )
