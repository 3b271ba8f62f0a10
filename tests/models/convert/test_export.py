"""Snapshots as graphs: what ONNX and torch.export compute equals the model here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import relaywave
from models.convert import export
from models.sampler import quantise, sample
from models.snapshot import load_sampler, read_snapshot, write_snapshot
from models.wavediff.data_space import PixelSpace
from tests.tiny import tiny_edm, tiny_relay, tiny_wavediff

WAVEDIFF = tiny_wavediff().objective
TWO_STEPS = replace(WAVEDIFF, resolution=16, diffusion=replace(WAVEDIFF.diffusion, steps=2))
PLAIN = replace(
    TWO_STEPS.generator,
    frequency_blocks=False,
    frequency_bottleneck=False,
    frequency_pyramid=False,
    compute_dtype="bfloat16",
)
OBJECTIVES = {
    "edm": tiny_edm().objective,
    "relay": tiny_relay().objective,
    "wavediff": TWO_STEPS,
    "ddgan": replace(TWO_STEPS, resolution=8, space=PixelSpace(), generator=PLAIN),
}


def make_snapshot(path: Path, name: str) -> Path:
    """Write a snapshot of random weights, none of which is zero."""
    torch.manual_seed(0)
    objective = OBJECTIVES[name].build()
    network = objective.build_networks()[objective.sampled_network]
    weights = {k: torch.randn_like(v) * 0.1 for k, v in network.state_dict().items()}
    write_snapshot(
        path, weights, objective=OBJECTIVES[name], network=objective.sampled_network,
        images_seen=8, ema="", provenance={},
    )  # fmt: skip
    return path


@pytest.mark.parametrize("name", ["edm", "relay", "wavediff"])  # ddgan below: 25 s each
def test_onnx_equals_the_model_for_any_batch(name, tmp_path, capsys):
    path = make_snapshot(tmp_path / "snapshot", name)
    assert relaywave.main(["convert", "export", str(path), str(tmp_path / "out")]) == 0
    assert "differs by at most" in capsys.readouterr().out
    graph = export.graph_of(read_snapshot(path))
    three = {key: torch.cat([rows.flip(0), rows[:1]]) for key, rows in graph.inputs.items()}
    ours = graph.module(*three.values())
    theirs = export.run(tmp_path / "out" / "model.onnx", three)
    torch.testing.assert_close(theirs, ours, atol=export.TOLERANCE, rtol=0)
    assert ours.std() > 1e-3


def test_torch_draws_the_images_of_seeds(tmp_path):
    path = make_snapshot(tmp_path / "snapshot", "ddgan")
    arguments = ["convert", "export", str(path), str(tmp_path / "out"), "--format", "torch"]
    assert relaywave.main(arguments) == 0
    draws = export.draws_of(OBJECTIVES["ddgan"], [5, 6, 7])
    theirs = quantise(export.run(tmp_path / "out" / "model.pt2", draws)).int()
    ours = sample(load_sampler([read_snapshot(path)]), [5, 6, 7]).int()
    assert (theirs - ours).abs().max() <= 1


def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch, capsys):
    path = make_snapshot(tmp_path / "snapshot", "edm")
    monkeypatch.setattr(export, "_difference", lambda graph, file: 2e-4)
    arguments = ["convert", "export", str(path), str(tmp_path / "out"), "--format", "torch"]
    assert relaywave.main(arguments) == 2
    assert "differs by 2.0e-04" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_directories_are_left_alone(tmp_path, capsys):
    path = make_snapshot(tmp_path / "snapshot", "edm")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert relaywave.main(["convert", "export", str(path), str(tmp_path / "out")]) == 2
    assert "holds other things than an exported graph ('mine.txt')" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
