"""`relaywave eval time`: running times of recipes and snapshots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evaluation import __main__ as cli
from evaluation.samples.timing import BatchDraws
from models.wavediff import presets
from models.wavediff.sampler import WaveDiffSampler
from tests.slurm.project import make_run

QUICK = ["--batch-size", "2", "--warm-up", "1", "--repeats", "2"]


def test_all_steps_of_a_sampler_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    generate = WaveDiffSampler.generate

    def counted(self: WaveDiffSampler, draws: BatchDraws, labels: None = None) -> torch.Tensor:
        calls.append(len(draws))
        return generate(self, draws, labels)

    monkeypatch.setattr(WaveDiffSampler, "generate", counted)
    out = tmp_path / "times.json"
    command = ["time", "wavediff_debug", *QUICK, "--out", str(out)]
    assert cli.main(command) == 0
    assert calls == [1, 2, 2, 2], "its cost, one to warm up, two that are timed"
    times = json.loads(out.read_text())
    assert times["nfe"] == 2
    assert times["seconds"] > 0
    before = out.read_bytes()
    assert cli.main(command) == 0
    assert out.read_bytes() == before
    assert len(calls) == 4, "a file of the same is reused"
    assert cli.main([*command, "diffusion.steps=3"]) == 0
    assert json.loads(out.read_text())["nfe"] == 3


def test_a_recipe_has_the_times_of_its_snapshots(tmp_path: Path) -> None:
    run_dir, digests = make_run(tmp_path / "run"), []
    for source in (str(run_dir), "rdm_debug_edm16"):
        out = tmp_path / "times.json"
        assert cli.main(["time", source, *QUICK, "--out", str(out)]) == 0
        digests.append(json.loads(out.read_text())["request"])
    assert digests[0] == digests[1]


def test_costs_are_those_that_the_paper_counts() -> None:
    """33.37 M parameters (docs/reference/wavediff.md#9); the first draw is made beforehand."""
    generator = presets.wavediff_cifar10().build().build_networks()["generator"]
    assert sum(p.numel() for p in generator.parameters()) == pytest.approx(33.37e6, abs=5e3)
    draws = BatchDraws(3, torch.device("cpu"))
    first, second = draws.randn((2,)), draws.randn((2,))
    draws.restart()
    assert torch.equal(draws.randn((2,)), first)
    assert not torch.equal(draws.randn((2,)), second)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (["wavediff_debg"], "there is no recipe 'wavediff_debg'"),
        (["wavediff_debug", "--repeats", "1"], "--repeats=1 must be at least 2"),
        (["rdm_debug_relay64"], "continues from a stage"),
        (["wavediff_debug", "diffusion.stps=3"], "unknown setting"),
    ],
    ids=str,
)
def test_invalid_requests_are_one_line(
    source: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dry_run in ([], ["--dry-run"]):
        assert cli.main(["time", *source, "--out", str(tmp_path / "t.json"), *dry_run]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_other_files_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.json").write_text("{}")
    assert cli.main(["time", "wavediff_debug", "--out", str(tmp_path / "notes.json")]) == 2
    assert "notes.json" in capsys.readouterr().err
    assert (tmp_path / "notes.json").read_text() == "{}"
