"""Models that draw with other settings at each call, and the states between."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluation.demo.model import BY_SEED, DemoModel
from models.analysis.states import recorded_states, stages_of
from models.config_io import ConfigError, override
from models.sampler import sample
from models.snapshot import Snapshot, load_sampler, write_snapshot
from tests.tiny import TINY

SEEDS = [3, 4, 5, 11]


def snapshot(directory: Path, recipe: str, *overrides: str) -> Snapshot:
    """Write a snapshot of a tiny model whose weights are drawn, so that its outputs differ."""
    objective = override(TINY[recipe]().objective, overrides)
    built = objective.build()
    torch.manual_seed(0)
    network = built.build_networks()[built.sampled_network]
    weights = {k: v + 0.05 * torch.randn_like(v) for k, v in network.state_dict().items()}
    classes = [f"class {n}" for n in range(objective.label_dim)]
    return write_snapshot(
        directory / recipe, weights, objective=objective, network=built.sampled_network,
        images_seen=8, ema="", provenance={"class_names": classes},
    )  # fmt: skip


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Snapshot]]:
    """Return a model of one stage, a relay, and a WaveDiff generator."""
    root = tmp_path_factory.mktemp("snapshots")
    edm = snapshot(root, "tiny_edm", "unet.resolution=4", "unet.attn_resolutions=[]")
    return {"edm": [edm], "relay": [edm, snapshot(root, "tiny_relay")],
            "wavediff": [snapshot(root, "tiny_wavediff")]}  # fmt: skip


@pytest.mark.parametrize("name", ["edm", "relay", "wavediff"])
def test_images_are_those_of_the_sampler_with_or_without_states(
    stages: dict[str, list[Snapshot]], name: str
) -> None:
    model, sampler = DemoModel(stages[name], "cpu"), load_sampler(stages[name])
    values = [control.value for control in model.controls]
    expected = sample(sampler, SEEDS)
    plain = model.draw(SEEDS, BY_SEED, values)
    assert torch.equal(plain.images, expected)
    assert not plain.states
    drawing = model.draw(SEEDS, BY_SEED, values, states=True)
    assert torch.equal(drawing.images, expected)
    assert drawing.nfe == sampler.nfe
    edge = expected.shape[-1]
    assert {tuple(picture.shape) for picture, _ in drawing.states} == {(3, 2 * edge, edge)}


@pytest.mark.parametrize("name", ["edm", "relay", "wavediff"])
def test_a_state_for_each_evaluation_and_the_last_is_the_image(
    stages: dict[str, list[Snapshot]], name: str
) -> None:
    sampler = load_sampler(stages[name])
    with recorded_states(sampler) as states:
        images = sample(sampler, SEEDS, to_uint8=lambda images: images)
    unguided = sum(stage.nfe[list(stage.nfe)[-1]] for stage in stages_of(sampler))
    assert len(states) == unguided
    assert [state.stage for state in states] == [
        stage for stage, count in sampler.nfe.items() for _ in range(count)
    ]
    torch.testing.assert_close(states[-1].predicted, images, check_dtype=False)
    levels = [state.level for state in states if state.stage == states[-1].stage]
    assert levels == sorted(levels, reverse=True)
    again = sample(sampler, SEEDS, to_uint8=lambda images: images)
    assert torch.equal(again, images)
    assert len(states) == unguided, "nothing is recorded afterwards"


def test_controls_are_what_each_stage_has(stages: dict[str, list[Snapshot]]) -> None:
    labels = {
        name: [control.label for control in DemoModel(found, "cpu").controls]
        for name, found in stages.items()
    }
    assert labels["wavediff"] == []
    assert "steps" in labels["edm"]
    edges = [s.objective.build().resolution for s in stages["relay"]]
    assert f"{edges[0]}px steps" in labels["relay"]
    assert f"{edges[1]}px eta" in labels["relay"]


def test_moved_controls_change_the_images_and_impossible_ones_are_rejected(
    stages: dict[str, list[Snapshot]],
) -> None:
    model = DemoModel(stages["relay"], "cpu")
    values = [control.value for control in model.controls]
    before = model.draw(SEEDS, BY_SEED, values)
    place = next(n for n, control in enumerate(model.controls) if control.label.endswith(" eta"))
    moved = model.draw(SEEDS, BY_SEED, [*values[:place], 0.9, *values[place + 1 :]])
    assert not torch.equal(before.images, moved.images)
    assert torch.equal(model.draw(SEEDS, BY_SEED, values).images, before.images), "it moves back"
    steps = max(n for n, control in enumerate(model.controls) if control.step == 1)
    with pytest.raises(ConfigError, match="steps=1"):
        model.draw(SEEDS, BY_SEED, [*values[:steps], 1, *values[steps + 1 :]])
    with pytest.raises(ConfigError, match="is empty"):
        model.draw(SEEDS, BY_SEED, [None, *values[1:]])  # type: ignore[list-item]


def test_a_class_for_all_images(stages: dict[str, list[Snapshot]]) -> None:
    model = DemoModel(stages["edm"], "cpu")
    values = [control.value for control in model.controls]
    assert model.classes[1] == "class 1"
    assert model.draw(SEEDS, 1, values).labels == [1] * len(SEEDS)
    dim = stages["edm"][0].objective.label_dim
    assert model.draw(SEEDS, BY_SEED, values).labels == [seed % dim for seed in SEEDS]
