"""The authors' checkpoint, from its file and the downloaded images to the table.

The networks have the published sizes and random weights: what comes out means nothing, that the
official layouts lead to the published row does.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evaluation.detectors.inception import FidInception
from models.wavediff.presets import PRESETS
from slurm.__main__ import main
from tests.data_pipelines.sources.test_sources import write_cifar_python
from tests.test_reproduce import Features, write_wavediff

NAME = "wavediff_cifar10"
ON_CPU = ["--cluster", "local", "--gpus-per-node", "0", "--tasks", "1"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # submitit leaves its log files open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_authors_checkpoint_becomes_the_row_beside_the_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RELAYWAVE_WEIGHTS", str(_write_detectors(tmp_path)))
    write_wavediff(tmp_path / "official" / "cifar10" / "netG_1300.pth", PRESETS[NAME]())
    images = write_cifar_python(tmp_path)
    run = ["paper", "run", NAME, "--root", str(tmp_path / "root"), "--images", "2", *ON_CPU]
    run += ["--official", str(tmp_path / "official")]
    source = ["--source", f"cifar10={images}"]
    assert main(run) == 2
    assert "needs the images as downloaded: --source cifar10=PATH" in capsys.readouterr().err
    assert main([*run, "--tree"]) == 0, "a look at the plan needs no images"
    tree = capsys.readouterr().out
    assert "└ data-wavediff_cifar10: not submitted  after data-wavediff_cifar10-shares" in tree
    assert "└ official-wavediff_cifar10: not submitted" in tree

    assert main([*run, *source]) == 0
    out = tmp_path / "root" / "paper" / f"{NAME}-official-2_images"
    with open(out / "table.csv") as file:
        (row,) = (row for row in csv.DictReader(file) if row["fid ours"])
    assert row["method"] == "WaveDiff"
    assert row["fid published"] == "4.01"
    assert float(row["fid ours"]) > 0
    assert "number of images is 2, not 50000" in row["deviations"]
    assert (out / "figure.png").exists()

    images.unlink()
    capsys.readouterr()
    assert main(run) == 0, "what is there is reused, without the images as downloaded"
    assert "logs in" not in capsys.readouterr().out


def _write_detectors(root: Path) -> Path:
    """Write detectors of random weights; returns the list of their files."""
    torch.manual_seed(0)
    inception = {k: v for k, v in FidInception().state_dict().items() if v.is_floating_point()}
    save_file(inception, root / "inception.safetensors")
    torch.jit.script(Features()).save(root / "vgg16.pt")
    named = root / "weights.toml"
    named.write_text('inception = "inception.safetensors"\nvgg16 = "vgg16.pt"\n')
    return named
