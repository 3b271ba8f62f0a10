"""Runs of older versions: their flat `config.json` is read, and the same command resumes them.

`tests/records/config_flat_*.json` are as relaywave printed them before settings were grouped (the
RDM one with an extra average and `keep_best`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.checkpoint.format import CheckpointReader, committed
from dist_train.config import HalflifeEma, PowerEma, RunConfig
from dist_train.recipes import RECIPES
from dist_train.runtime.run_dir import settle_config
from models.config_io import ConfigError, from_json, override, read_config
from tests.dist_train.test_trainer import whole_tensors
from tests.paths import ROOT
from tests.ranks import run_ranks
from tests.tiny import BATCH, tiny_edm

FLAT = {kind: ROOT / f"tests/records/config_flat_{kind}.json" for kind in ("rdm", "wavediff")}
SHORT = PowerEma(relative_width=0.05)


def test_flat_settings_are_read_as_the_same_recipe() -> None:
    recipe = RECIPES["rdm_debug_edm16"]()
    recipe = replace(
        recipe,
        ema=recipe.ema | {"short": SHORT},
        checkpoint=replace(recipe.checkpoint, keep_best="denoiser/loss"),
    )
    assert read_config(RunConfig, FLAT["rdm"]) == recipe
    assert read_config(RunConfig, FLAT["wavediff"]) == RECIPES["wavediff_debug"]()


def _flat(**changes: Any) -> dict[str, Any]:
    return {**json.loads(FLAT["rdm"].read_text()), **changes}


def test_an_extra_average_of_old_runs_keeps_its_meaning() -> None:
    short = _flat()["extra_emas"]["short"]
    config = from_json(RunConfig, _flat(extra_emas={"ema": short}))
    assert config.ema == {"main": SHORT}  # that is what the old code trained with
    with pytest.raises(ConfigError, match=r"extra_emas\.main: the name belongs to"):
        from_json(RunConfig, _flat(extra_emas={"main": short}))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("checkpoint_images=8", "renamed; write checkpoint.every_images="),
        ("zero_stage=2", "renamed; write sharding.zero_stage="),
        ("extra_emas={}", "renamed; write ema="),
        ("ema.rampup_ratio=0.1", "did you mean ema.main.rampup_ratio"),
        ('ema.ema={"type": "PowerEma", "relative_width": 0.05}', "ema.ema: this name is reserved"),
        ('ema={"short": {"type": "PowerEma", "relative_width": 0.05}}', "snapshots need one: main"),
    ],
)
def test_old_names_on_the_command_line_are_rejected_with_the_new_ones(
    assignment: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        override(tiny_edm(), [assignment])


def test_an_average_is_added_by_its_name() -> None:
    config = override(tiny_edm(), ['ema.short={"type": "PowerEma", "relative_width": 0.05}'])
    assert config.ema == {"main": HalflifeEma(halflife_images=3 * BATCH), "short": SHORT}


def test_an_old_run_keeps_the_precision_that_it_was_started_with(tmp_path: Path) -> None:
    device = torch.device("cpu")
    asked = override(tiny_edm(), ["compute.precision=float32", "compute.tf32=false"])
    started = override(tiny_edm(), ["compute.precision=bfloat16"])
    settle_config(tmp_path, started, device=device)
    (tmp_path / "snapshots" / f"{0:012d}").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"compute\.precision: 'bfloat16' -> 'float32'"):
        settle_config(tmp_path, asked, device=device)
    (tmp_path / "format.json").write_text('{"format_version": 1}')  # recipes did not pin it then
    for _ in range(2):  # also when its files have been written in the new format
        resumed = settle_config(tmp_path, asked, device=device)
        assert resumed.compute == started.compute
    written = json.loads((tmp_path / "format.json").read_text())
    assert (written["format_version"], written["began_as"]) == (2, 1)


def _begin(root: Path, total: int) -> None:
    from dist_train.build import build_trainer
    from dist_train.runtime.world import init_world

    overrides = [
        f"total_images={total}",
        "logging.grid_seeds=0",
        "checkpoint.keep_best=denoiser/loss",
        'ema.short={"type": "PowerEma", "relative_width": 0.05}',
    ]
    config = override(RECIPES["rdm_debug_edm16"](), overrides)
    world = init_world()
    config = settle_config(root, config, allow_changes=True, device=world.device)
    build_trainer(config, root, world).fit()


@pytest.mark.distributed
def test_a_run_of_an_older_version_resumes(tmp_path: Path) -> None:
    for name in ("undisturbed", "resumed"):
        run_ranks(1, _begin, tmp_path / name, 32)
    run_dir = tmp_path / "resumed"
    # As older versions left it: flat settings, layout 1, and these names in checkpoints.
    old = _flat(total_images=32, grid_seeds=0, precision="float32")
    (run_dir / "config.json").write_text(json.dumps(old))
    (run_dir / "format.json").write_text('{"format_version": 1}')
    groups = {key.split("/")[0] for key in CheckpointReader(committed(run_dir)[-1])._pieces}
    assert groups == {"denoiser", "denoiser.ema", "denoiser.short"}
    for name in ("undisturbed", "resumed"):
        run_ranks(1, _begin, tmp_path / name, 64)
    ours, theirs = whole_tensors(run_dir), whole_tensors(tmp_path / "undisturbed")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(values, theirs[name]) for name, values in ours.items())
    assert read_config(RunConfig, run_dir / "config.json").total_images == 64
