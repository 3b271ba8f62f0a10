"""Every step of a workflow requests what it can use, and what the command line says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.__main__ import main

SITE = """
cpus_per_task = 12
[sbatch]
gres = "gpu:8"
[resources.pack]
time = "2:00:00"
partition = "cpu"
"""


def requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> dict[str, set[str]]:
    """Return the options of each step's batch script, by the name of the step."""
    (tmp_path / "site.toml").write_text(SITE)
    arguments = ["workflow", "quickstart", "--root", str(tmp_path / "all"), "--dry-run"]
    assert main([*arguments, "--site", str(tmp_path / "site.toml"), *options]) == 0
    found = {}
    for script in capsys.readouterr().out.split("#!/bin/bash")[1:]:
        lines = {line[10:] for line in script.splitlines() if line.startswith("#SBATCH --")}
        name = next(line for line in lines if line.startswith("job-name="))
        found[name.removeprefix("job-name=quickstart-")] = lines
    return found


@pytest.mark.parametrize("options", ["", "--gpus-per-node=8", "--gres=gpu:a100:8 --mem-per-gpu=9G"])
def test_packing_and_tables_request_no_gpu(
    options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = requests(tmp_path, capsys, *options.split(), "-A", "all")
    for name in ("shares", "data", "table"):
        assert not [text for text in found[name] if text.startswith(("gpu", "gres"))], name
        assert {"ntasks-per-node=1", "account=all"} <= found[name]
    assert "cpus-per-task=1" in found["table"]
    assert {"cpus-per-task=12", "time=120", "partition=cpu"} <= found["data"], "by the site"
    assert "time=1440" in found["rdm"]


def test_evaluation_uses_the_gpus_of_a_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = requests(tmp_path, capsys)
    for name in ("edm16", "reference", "rdm-samples", "rdm", "wavediff"):
        assert {"gpus-per-node=2", "ntasks-per-node=2"} <= found[name], name
    found = requests(tmp_path, capsys, "--gpus-per-node=0")
    assert not [text for text in found["rdm"] if text.startswith(("gpu", "gres"))]


def test_options_of_one_step_or_of_a_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["eval:time=90", "rdm:time=30", "rdm:gpus-per-node=a100:1", "edm16:cpus-per-task=3",
             "edm16:seed=3", "pack:partition=mine", "table:mem=1G"]  # fmt: skip
    found = requests(tmp_path, capsys, *texts)
    assert {"time=30", "gpus-per-node=a100:1", "ntasks-per-node=1"} <= found["rdm"]
    assert {"time=90", "gpus-per-node=2"} <= found["wavediff"]
    assert "cpus-per-task=3" in found["edm16"]
    assert "cpus-per-task=12" in found["relay64"]
    assert {"partition=mine", "time=120"} <= found["shares"]
    assert "mem=1G" in found["table"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rdmm:time=30", "no step is 'rdmm'; known are pack,"),
        ("rdm:time=soon", "rdm: the time limit 'soon'"),
        ("pack:gres=gpu:1,gpu:2", "shares: 'gpu:1,gpu:2' has GPUs of several kinds"),
    ],
)
def test_options_of_steps_that_are_invalid(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "all")
    assert main(["workflow", "quickstart", "--root", root, "--dry-run", text]) == 2
    assert message in capsys.readouterr().err


def test_kinds_of_the_site_profile_are_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.toml").write_text('[resources.packing]\ntime = "10"\n')
    root, site = str(tmp_path / "all"), str(tmp_path / "other.toml")
    assert main(["workflow", "quickstart", "--root", root, "--dry-run", "--site", site]) == 2
    assert "resources.packing: no step is of that kind; pack, train" in capsys.readouterr().err
