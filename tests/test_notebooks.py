"""The notebooks of examples/ run from the first cell to the last, on tiny models."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from dist_train.__main__ import main
from tests.paths import ROOT
from tests.tiny import last_of_each

NOTEBOOKS = ROOT / "examples" / "notebooks"
TINY = [
    "data.backend=synthetic", "objective.unet.model_channels=8", "objective.unet.label_dim=4",
    "logging.wandb_project=null", "global_batch_size=8", "total_images=16",
    "logging.every_images=8", "checkpoint.every_images=16", "checkpoint.snapshot_every_images=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train both stages of a relay, and the first one again with another learning rate."""
    root = tmp_path_factory.mktemp("runs")
    wanted = {
        "edm16": ["quickstart_edm16", *TINY],
        "slow": ["quickstart_edm16", *TINY, "optim.denoiser.lr=1e-4"],
        "relay64": ["quickstart_relay64", *TINY],
    }
    for name, arguments in wanted.items():
        assert main([*last_of_each(*arguments), "--run-dir", str(root / name)]) == 0
    return {name: root / name for name in wanted}


def run(name: str, parameters: str) -> tuple[str, int]:
    """Run a notebook with other parameters; returns what it printed, and its number of pictures."""
    book = nbformat.read(NOTEBOOKS / name, as_version=4)
    (cell,) = (c for c in book.cells if "parameters" in c.metadata.get("tags", []))
    cell.source = parameters
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [out for c in book.cells for out in c.get("outputs", [])]
    printed = "".join(out.text for out in outputs if out.output_type == "stream")
    return printed, sum("image/png" in out.get("data", {}) for out in outputs)


def test_samples_are_drawn_and_compared(runs: dict[str, Path]) -> None:
    stages = [str(runs["edm16"]), str(runs["relay64"])]
    parameters = f"RUNS = {stages}; CHANGE = 'sampling.steps=8'; SEEDS = range(8)"
    printed, pictures = run("sample_and_look.ipynb", parameters)
    assert "64 pixels, 4 classes" in printed
    assert "mean difference by sampling.steps=8: 0.0 " not in printed
    assert pictures == 2


def test_two_runs_are_compared(runs: dict[str, Path]) -> None:
    both = [str(runs["edm16"]), str(runs["slow"])]
    printed, pictures = run("compare_two_runs.ipynb", f"RUNS = {both}; SEEDS = range(8)")
    assert printed == "optim.denoiser.lr: 0.002 -> 0.0001\n"
    assert pictures == 2


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_outputs_are_not_committed(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)
