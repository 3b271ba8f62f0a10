"""Moments of one file and features of another, in one run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation import __main__ as cli
from evaluation.reference.statistics_file import read_reference
from tests.evaluation.test_commands import write_images

METRICS = "fd:block4,pr:block4"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with samples, two sets, their references, and moments alone."""
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    for seed, name in enumerate(("samples", "first", "second")):
        write_images(tmp_path / name, 10 + seed, seed=seed)
    for name in ("first", "second"):
        out = str(tmp_path / f"{name}.npz")
        assert cli.main(["reference", str(tmp_path / name), out, "--taps", "block4"]) == 0
    gaussian = read_reference(tmp_path / "first.npz").gaussians["block4"]
    np.savez(tmp_path / "moments.npz", mu=gaussian.mu, sigma=gaussian.sigma)
    return tmp_path


def evaluate(place: Path, reference: str, *options: str) -> dict[str, dict[str, float]]:
    out = place / f"{len([*place.glob('result*.json')])}.result.json"
    command = ["run", str(place / "samples"), "--reference", reference, "--out", str(out)]
    assert cli.main([*command, "--metrics", METRICS, *options]) == 0
    result = json.loads(out.read_text())
    values = {name: metric["values"] for name, metric in result["metrics"].items()}
    out.unlink()
    return values | {"digest": result["reference"]["digest"]}


def test_each_metric_takes_what_it_needs_of_its_file(place: Path) -> None:
    first = evaluate(place, f"{place}/first.npz")
    second = evaluate(place, f"{place}/second.npz")
    pipeline = ("--reference-pipeline", "half_pixel112")
    digests = {first["digest"], second["digest"]}
    for others in ("second.npz", "second"):
        for moments, options in (("first.npz", ()), ("moments.npz", pipeline)):
            both = evaluate(place, f"moments={place}/{moments},features={place}/{others}", *options)
            for name in first:
                if name != "digest":
                    expected = first if name.startswith("fd") else second
                    assert both[name] == pytest.approx(expected[name], rel=1e-9)
            assert both["digest"] not in digests
    turned = evaluate(place, f"features={place}/second.npz,moments={place}/first.npz")
    assert turned["digest"] not in digests


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("moments={}/first.npz", "expected moments=FILE,features=FILE"),
        ("features={}/first.npz", "expected moments=FILE,features=FILE"),
        ("moments={0}/first,features={0}/second", "are images; name the statistics file"),
        ("moments={0}/first.npz,features={0}/no.npz", "no.npz does not exist"),
        ("moments={0}/first.npz,features={0}/moments.npz", "holds no features, only moments"),
    ],
)
def test_bad_pairs_are_rejected(
    place: Path, capsys: pytest.CaptureFixture[str], reference: str, message: str
) -> None:
    command = ["run", str(place / "samples"), "--out", str(place / "r.json"), "--metrics", METRICS]
    options = ["--reference", reference.format(place), "--reference-pipeline", "half_pixel112"]
    assert cli.main([*command, *options]) == 2
    assert message in capsys.readouterr().err
