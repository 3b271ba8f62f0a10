"""Averages: closed forms of their profiles, and reconstruction against those tracked directly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train.__main__ import main
from dist_train.config import CheckpointConfig, ConstantEma, HalflifeEma, LoggingConfig, PowerEma
from dist_train.ema_posthoc import Stored, profile_weights, solve
from dist_train.ema_profiles import EmaProfile
from models.config_io import write_config
from models.snapshot import read_snapshot, write_snapshot
from tests.ranks import run_ranks
from tests.tiny import BATCH, tiny_edm


@pytest.mark.parametrize(
    "profile",
    [
        PowerEma(relative_width=0.1),
        ConstantEma(decay=0.9),
        HalflifeEma(halflife_images=100),
        HalflifeEma(halflife_images=30, rampup_ratio=None),
    ],
)
def test_profile_weights_are_those_of_the_recursion(
    profile: PowerEma | ConstantEma | HalflifeEma,
) -> None:
    values = np.random.default_rng(0).normal(size=40)
    average = 0.0  # the initial weights
    for step, value in enumerate(values):
        beta = profile.beta(step * 8, 8)
        average = beta * average + (1 - beta) * value
    weights = profile_weights(profile, 40 * 8, 50, 8)
    assert np.dot(weights[:40], values) == pytest.approx(average, rel=1e-12)
    assert not weights[40:].any()


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_power_profile_has_the_relative_width_it_is_named_after(width: float) -> None:
    steps = 20_000
    weights = profile_weights(PowerEma(relative_width=width), steps, steps, 1)
    times = (np.arange(steps) + 0.5) / steps
    mean = np.dot(weights, times)
    assert weights.sum() == pytest.approx(1.0)
    assert np.sqrt(np.dot(weights, (times - mean) ** 2)) == pytest.approx(width, rel=1e-3)


def test_two_power_profiles_stored_often_span_the_others() -> None:
    basis = [
        Stored(Path(), PowerEma(relative_width=width), images)
        for images in range(500, 8001, 500)
        for width in (0.05, 0.1)
    ]
    for width in (0.06, 0.075, 0.12, 0.15):
        assert solve(PowerEma(relative_width=width), 8000, basis, 4)[1] < 0.02
    assert solve(PowerEma(relative_width=0.05), 8000, basis, 4)[1] < 1e-9
    sparse = [s for s in basis if s.images_seen % 4000 == 0]
    assert solve(PowerEma(relative_width=0.2), 8000, sparse, 4)[1] > 0.05


@pytest.mark.parametrize("snapshots", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "target",
    [
        PowerEma(relative_width=0.25),
        PowerEma(relative_width=0.02),
        ConstantEma(decay=0.999),
        HalflifeEma(halflife_images=50),
    ],
)
def test_combinations_are_averages_however_few_are_stored(
    snapshots: int, target: EmaProfile
) -> None:
    """Weights that never changed stay what they are: the coefficients sum to 1."""
    profiles = [PowerEma(relative_width=0.05), HalflifeEma(halflife_images=2000)]
    basis = [
        Stored(Path(), profile, 8000 * number // snapshots)
        for number in range(1, snapshots + 1)
        for profile in profiles
    ]
    assert solve(target, 8000, basis, 4)[0].sum() == pytest.approx(1, abs=1e-12)
    assert solve(target, 8000, basis[-1:], 4)[0].tolist() == pytest.approx([1])


def _store(run_dir: Path, name: str, images: int, profile: EmaProfile, value: float) -> Path:
    config = tiny_edm()
    weights = config.objective.build().build_networks()["denoiser"].state_dict()
    path = run_dir / name / f"{images:012d}"
    write_snapshot(
        path, {key: torch.full_like(w, value) for key, w in weights.items()},
        objective=config.objective, network="denoiser", images_seen=images,
        ema=profile.describe(), provenance={},
    )  # fmt: skip
    return path


SHORT, LONG = PowerEma(relative_width=0.05), PowerEma(relative_width=0.1)


def _stored_run(run_dir: Path) -> list[Path]:
    """Write a run that stored two averages at few times; all weights are 3."""
    run_dir.mkdir()
    config = replace(tiny_edm(), ema={"main": SHORT, "long": LONG})
    write_config(config, run_dir / "config.json")
    return [
        _store(run_dir, name, images * BATCH, profile, 3.0)
        for images in (20, 40)
        for name, profile in (("snapshots", SHORT), ("ema/long", LONG))
    ]


def test_averages_that_are_far_from_the_wanted_are_rejected_unless_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    _stored_run(run)
    command = ["ema", str(run), "--relative-width", "0.25"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "above --max-error 0.1; possible are --relative-width 0.05, 0.07, 0.1" in error
    assert not (run / "ema/posthoc_power_0.25").exists()
    assert main([*command, "--max-error", "1"]) == 0
    made = read_snapshot(run / "ema/posthoc_power_0.25" / f"{40 * BATCH:012d}")
    assert made.provenance["reconstruction_error"] > 0.1
    for values in made.load_weights().values():
        assert torch.equal(values, torch.full_like(values, 3.0))
    for kind, value in (("--decay", "0.5"), ("--halflife-images", "1")):
        assert main(["ema", str(run), kind, value]) == 2
        assert "possible are" in capsys.readouterr().err


def test_stored_averages_that_are_not_what_they_should_be_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    paths = _stored_run(run)

    def rejected() -> str:
        assert main(["ema", str(run), "--relative-width", "0.07"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    _store(run, "ema/long", 20 * BATCH, LONG, float("nan"))
    assert "are NaN or infinite" in rejected()
    _store(run, "ema/long", 20 * BATCH, SHORT, 3.0)
    assert "is the average power 0.05 at" in rejected()
    _store(run, "ema/long", 20 * BATCH, LONG, 3.0)
    paths[0].rename(run / "snapshots/000000000008")
    assert "images: it was moved or replaced" in rejected()


def _train(run_dir: Path) -> None:
    from dist_train.build import build_trainer
    from dist_train.runtime.run_dir import settle_config
    from dist_train.runtime.world import init_world

    widths = {"short": 0.05, "long": 0.10, "between": 0.07, "beyond": 0.14}
    config = replace(
        tiny_edm(),
        total_images=48 * BATCH,
        checkpoint=CheckpointConfig(every_images=24 * BATCH, snapshot_every_images=2 * BATCH),
        logging=LoggingConfig(every_images=48 * BATCH, grid_seeds=0),
        ema=tiny_edm().ema
        | {name: PowerEma(relative_width=width) for name, width in widths.items()},
    )
    world = init_world()
    if world.rank == 0:
        settle_config(run_dir, config)
    build_trainer(config, run_dir, world).fit()


@pytest.mark.distributed
def test_reconstructed_averages_are_those_that_were_tracked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_ranks(2, _train, tmp_path)
    tracked = {}
    for name, width in (("between", 0.07), ("beyond", 0.14)):
        ema_dir = tmp_path / "ema" / name
        tracked[name] = read_snapshot(ema_dir / f"{48 * BATCH:012d}").load_weights()
        for path in ema_dir.iterdir():  # what is looked for must not be in the basis
            (path / "snapshot.json").rename(path / "hidden.json")
        out = tmp_path / f"out_{name}"
        command = ["ema", str(tmp_path), "--relative-width", str(width), "--out", str(out)]
        assert main(command) == 0
        assert "stored averages" in capsys.readouterr().out
        rebuilt = read_snapshot(out / f"{48 * BATCH:012d}").load_weights()
        newest = read_snapshot(tmp_path).load_weights()
        error = _distance(rebuilt, tracked[name]) / _distance(newest, tracked[name])
        assert error < 0.05, f"{name}: {error:.3f} of the distance to the tracked main average"
    assert main(["ema", str(tmp_path), "--decay", "0.9", "--at", "3"]) == 2
    assert "has stored no average at 3 images" in capsys.readouterr().err


def _distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return sum(float((ours[k].double() - theirs[k].double()).square().sum()) for k in ours) ** 0.5
