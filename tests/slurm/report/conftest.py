"""Two tiny runs with all that a page shows of them, trained once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import relaywave
from evaluation.protocols import find_protocol
from evaluation.results.result_file import FORMAT, write_result
from models.analysis.spectrum import compute_spectra, write_table
from models.config_io import override
from models.rdm import presets as rdm
from tests.evaluation.test_deviations import record, relay, result_of
from tests.ranks import run_ranks
from tests.tiny import BATCH, TINY

HOSTILE = "<script>document.title='run'</script>"
"""A name of a run that must stay text."""


def _train(root: Path) -> None:
    """Train both runs; the second is continued by another start."""
    from dist_train.build import build_trainer
    from dist_train.config import RunConfig
    from dist_train.runtime.run_dir import settle_config
    from dist_train.runtime.world import init_world

    world = init_world()

    def train(config: RunConfig, run_dir: Path, allow_changes: bool = False) -> None:
        if world.rank == 0:
            settle_config(run_dir, config, allow_changes, world.device)
        world.barrier()
        build_trainer(config, run_dir, world).fit()
        world.barrier()

    settings = (f"checkpoint.snapshot_every_images={2 * BATCH}", "logging.grid_seeds=4")
    wavediff = override(TINY["tiny_wavediff"](), list(settings))
    train(wavediff, root / "tiny_wavediff")
    edm = override(TINY["tiny_edm"](), list(settings))
    train(replace(edm, total_images=3 * BATCH), root / "tiny_edm")
    train(edm, root / "tiny_edm", allow_changes=True)


def make_result(run_dir: Path, number: int, images_seen: int, **sampling: Any) -> dict[str, Any]:
    """Return a result as the protocol of RDM's main table makes it, of a snapshot of a run."""
    protocol = find_protocol("rdm_imagenet256")
    made = result_of(protocol, relay(protocol.name, guidance=rdm.Guidance(), **sampling))
    model = made["images"]["models"][-1]
    model |= {"images_seen": images_seen}
    model |= {"path": str(run_dir / "snapshots" / f"{images_seen:012}")}
    fid = 9.0 - number
    made |= {
        "format": FORMAT,
        "identity": f"{number:012x}",
        "title": f"{run_dir.name} {number}",
        "made_of": {},
        "metrics": {
            "fid": {"values": {"distance": fid}, "interval95": [fid - 0.5, fid + 0.5]},
            "pr": {"values": {"precision": 0.6, "recall": 0.5}},
        },
    }
    return made | {"protocol": record(protocol.name, made)}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with two runs and nothing else."""
    root = tmp_path_factory.mktemp("trained")
    run_ranks(2, _train, root)
    return root


@pytest.fixture(scope="session")
def runs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with two runs, results, a table of spectra, and a run of a hostile name.

    Of the last only its configuration and metrics are there.
    """
    root = tmp_path_factory.mktemp("runs") / "runs"
    shutil.copytree(trained, root)
    edm = root / "tiny_edm"
    results = [
        make_result(edm, 1, 2 * BATCH),
        make_result(edm, 2, 6 * BATCH),
        make_result(edm, 3, 6 * BATCH, eta=0.0),
        make_result(edm, 4, 6 * BATCH, eta=0.3),
    ]
    for number, result in enumerate(results):
        (edm / "evaluation").mkdir(exist_ok=True)
        write_result(edm / "evaluation" / f"{number}.json", result)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    spectra = compute_spectra([images], 4, 0.5, torch.Generator().manual_seed(1))
    (root / "spectrum").mkdir()
    write_table(spectra, root / "spectrum" / "spectrum.csv")
    hostile = root / HOSTILE.replace("/", "\N{DIVISION SLASH}")
    hostile.mkdir()
    for name in ("config.json", "format.json"):
        shutil.copy(edm / name, hostile)
    line = {
        "images_seen": 8,
        "step": 1,
        "denoiser/loss": 1.0,
        "denoiser/loss_</script><b>": 2.0,
        "denoiser/loss_b": 1.0,
    }
    line["speed/images_per_second"] = 4.0
    (hostile / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return root


@pytest.fixture(scope="session")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a report of all these."""
    out = tmp_path_factory.mktemp("page") / "report"
    assert relaywave.main(["report", str(runs), "--out", str(out)]) == 0
    return out
