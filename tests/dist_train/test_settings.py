"""Accepted means effective: a setting is read, or an override of it is rejected."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from dist_train.build import build_trainer
from dist_train.config import RunConfig
from dist_train.dry_run import check_run
from dist_train.precision import set_float32_mode, settle_precision
from dist_train.recipes import find_recipe
from dist_train.runtime.world import init_world
from models.config_io import ConfigError, override, unread_settings
from tests.tiny import BATCH, TINY

READ_BY_JOBS = {"sharding.nodes", "sharding.gpus_per_node"}
READ_WITH_SEVERAL_RANKS = {"sharding.zero_stage"}
READ_WHEN_DIVERGED = {"divergence.max_roll_backs"}
WARNED_OF = {"objective.sampling.churn", "objective.sampling.guidance"}
LABELS = {"recipe", "objective.label_dim"}
"""Settings that one rank, whose training goes well, does not read."""
VARIANTS: dict[str, list[str]] = {
    "tiny_edm": ["logging.grid_seeds=1"],
    "tiny_relay": ["logging.grid_seeds=1", "divergence.action=roll_back"],
    "tiny_wavediff": ["logging.grid_seeds=1", "divergence.action=skip"],
}
COPYING = {"__post_init__", "unread", "unread_settings", "_own_value", "_groups", "to_json",
           "replace", "_replace", "__eq__", "__hash__", "asdict"}  # fmt: skip
"""Functions that look at all settings, and so at none in particular."""


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (dotted name, group, field) of every setting that is not a group of others."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        entries = value.items() if isinstance(value, dict) else [("", value)]
        groups = [(key, entry) for key, entry in entries if dataclasses.is_dataclass(entry)]
        if not groups:
            yield name, config, field.name
        for key, group in groups:
            yield from _leaves(group, f"{name}.{key}.".replace("..", "."))


def _is_copying(frame: FrameType | None) -> bool:
    for _ in range(3):
        if frame is None:
            return False
        if frame.f_code.co_name in COPYING or frame.f_code.co_filename == dataclasses.__file__:
            return True
        if frame.f_code.co_name not in ("<dictcomp>", "<genexpr>", "<listcomp>", "<lambda>"):
            return False
        frame = frame.f_back
    return False


def _watch(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> set[tuple[type, str]]:
    """Return a set that fills with (class, field) of the settings that are read."""
    read: set[tuple[type, str]] = set()
    for cls in {type(group) for _, group, _ in _leaves(config)}:
        names = {field.name for field in dataclasses.fields(cls)}

        def look_up(self: Any, name: str, names: set[str] = names) -> Any:
            if name in names and not _is_copying(sys._getframe(1)):
                read.add((type(self), name))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(cls, "__getattribute__", look_up)
    return read


@pytest.mark.parametrize("name", TINY)
def test_training_reads_every_setting_that_it_accepts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = override(TINY[name](), VARIANTS[name])
    unread = {setting for setting, _ in unread_settings(config)}
    leaves = [*_leaves(config)]
    read = _watch(config, monkeypatch)
    settled = settle_precision(config, bfloat16=False)
    set_float32_mode(settled.compute)
    build_trainer(settled, tmp_path, init_world()).fit()
    monkeypatch.undo()

    known = unread | LABELS | WARNED_OF | READ_BY_JOBS
    known |= READ_WITH_SEVERAL_RANKS | READ_WHEN_DIVERGED
    for setting, group, field in leaves:
        covered = any(setting == other or setting.startswith(f"{other}.") for other in known)
        assert (type(group), field) in read or covered, f"nothing reads {setting}"


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("rdm_debug_edm16", ["data.path=set"], 'data.path="set" has no effect: data.backend=synth'),
        ("rdm_debug_edm16", ["data.split=x"], "unknown setting 'data.split'"),
        ("rdm_debug_edm16", ['data.classes=["cat"]'], "add data.backend=dali, pillow or ffcv"),
        ("rdm_debug_edm16", ["data.subset=8"], "data.subset=8 has no effect"),
        ("rdm_debug_edm16", ["data.workers=4"], "data.workers=4 has no effect"),
        ("quickstart_edm16", ["data.backend=synthetic", "data.path=set"], "data.path"),
        ("quickstart_edm16", ["data.ffcv_cache_gb=2"], "data.backend=dali has no such cache"),
        ("quickstart_edm16", ["data.cache_gb=2"], "only remote sets (URLs) are cached"),
        ("quickstart_edm16", ["data.weight=2"], "there is one set only; add data.mix"),
        ("quickstart_edm16", ["data.shuffle=false", "data.shuffle_window=9"], "shuffle_window=9"),
        ("quickstart_edm16", ["logging.grid_previous=run"], "only a relay's grids"),
        ("quickstart_relay64", ["logging.grid_previous=run", "logging.grid_seeds=0"], "no grids"),
        ("quickstart_edm16", ["divergence.max_roll_backs=9"], "divergence.action is stop"),
        ("quickstart_edm16", ["divergence.max_skipped_in_a_row=9"], "set it to skip"),
        (
            "rdm_celebahq64",
            ["objective.unet.compute_dtype=bfloat16"],
            "compute.precision=float32 is that of all networks",
        ),
        ("quickstart_edm16", ["objective.unet.attn_resolutions=[7]"], "have the edges 16, 8"),
        (
            "quickstart_wavediff64",
            ["objective.r1_gamma=0", "objective.r1_interval=3"],
            "r1_gamma=0 switches the penalty off",
        ),
        ("quickstart_wavediff64", ["objective.generator.combine=cat"], "joins no plain inputs"),
        ("quickstart_wavediff64", ["objective.generator.fir=false"], "by Haar bands"),
        (
            "quickstart_wavediff64",
            [
                "objective.generator.input_pyramid=none",
                "objective.generator.frequency_pyramid=false",
            ],
            "input_pyramid=none",
        ),
        ("quickstart_edm16", ["objective.sampling.churn.noise=1.1"], "churn.amount, too"),
        ("quickstart_edm16", ["objective.sampling.churn.sigma_max=9"], "no level is churned"),
        ("quickstart_edm16", ["objective.sampling.guidance.sigma_max=9"], "guidance.scale above 1"),
        ("quickstart_relay64", ["objective.sampling.guidance.sigma_min=1"], "no level is guided"),
        ("quickstart_edm16", ['data={"type": "DataConfig", "resolution": 16, "weight": 3}'], "mix"),
    ],
)  # fmt: skip
def test_an_override_of_what_nothing_reads_is_rejected(
    recipe: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        override(find_recipe(recipe)(), overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipes_own_settings_and_defaults_may_be_left_without_effect() -> None:
    """Only what is asked for must act: a published recipe on generated images keeps its path."""
    config = override(
        find_recipe("rdm_imagenet64")(), ["data.backend=synthetic", "data.subset=null"]
    )
    assert config.data.path
    assert config.data.backend == "synthetic"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1", "seed=2"], "setting seed is given twice"),
        (["data.resolution=8", 'data={"type":"DataConfig","resolution":16}'], "would replace"),
        (["objectve.unet.label_dim=4"], "did you mean objective.unet.label_dim"),
        (["optim.denoiser.lr=-1"], "lr=-1.0 must be positive"),
        (["optim.denoiser.lr=NaN"], "lr=nan must be a finite number"),
        (["optim.denoiser.lr=1e999"], "lr=inf must be a finite number"),
        (["divergence.explosion=Infinity"], "explosion=inf must be a finite number"),
        (["optim.denoiser.eps=0"], "eps=0.0 must be positive"),
        (["optim.denoiser.schedule.images=-1"], "images=-1 must not be negative"),
        (["ema.main.halflife_images=0"], "halflife_images=0 must be at least 1"),
        (["ema.main.rampup_ratio=0"], "rampup_ratio=0.0 must be positive or null"),
        (["global_batch_size=0"], "global_batch_size=0 must be positive"),
        (["total_images=0"], "total_images=0 must be positive"),
        (["objective.sampling.steps=0"], "steps=0 must be"),
    ],
)  # fmt: skip
def test_impossible_and_contradictory_overrides_are_rejected(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        override(find_recipe("quickstart_edm16")(), overrides)
    assert message in str(caught.value)


def test_a_run_is_not_shortened_below_what_it_has_trained(tmp_path: Path) -> None:
    def config(total: int) -> RunConfig:
        return dataclasses.replace(TINY["tiny_edm"](), total_images=total)

    build_trainer(config(3 * BATCH), tmp_path, init_world()).fit()
    build_trainer(config(2 * BATCH + 1), tmp_path, init_world()).fit()  # ends in the same step
    with pytest.raises(ConfigError, match="total_images=16, but the run has trained 24 images"):
        build_trainer(config(2 * BATCH), tmp_path, init_world()).fit()
    with pytest.raises(ConfigError, match="set it to at least 17"):
        check_run(config(2 * BATCH), tmp_path, 1, data_later=False)
