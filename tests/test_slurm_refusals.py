"""What is refused at submission: one clear line, exit code 2, nothing queued or written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from slurm import preflight, training
from slurm.__main__ import main
from slurm.preflight import Partition
from tests.tiny import tiny_edm

RUN = ["train", "rdm_debug_edm16", "--nodes=2", "--gpus-per-node=4"]
PARTITIONS = [Partition("main", True, 4, 2880), Partition("high", False, 4, None)]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A login node with the test cluster's partitions and accounts, and nothing behind them."""

    def answer(command: list[str], timeout: float = 0.0) -> str:
        return {"account": "relaywave\nroot\n", "qos": "normal\n"}[command[3]]

    monkeypatch.setattr(preflight, "have_slurm", lambda: True)
    monkeypatch.setattr(preflight, "partitions", lambda: PARTITIONS)
    monkeypatch.setattr(preflight, "run_slurm", answer)
    (tmp_path / "site.toml").write_text(f'shared = ["{tmp_path}"]')
    return ["--site", str(tmp_path / "site.toml"), "--run-dir", str(tmp_path / "run")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--partition=nowhere"], "no partition 'nowhere'; known are main, high"),
        (["--account=someone"], "no account 'someone'; known are relaywave, root"),
        (["--qos=best"], "no qos 'best'; known are normal"),
        (["--nodes=5", "global_batch_size=80"], "--nodes=5: partition main has 4 nodes"),
        (["--time=3-0"], "partition main allows 2880 minutes"),
        (["--name=a;rm -rf x"], "the job name 'a;rm -rf x' may only have letters"),
        (["--run-dir=/nowhere/shared"], "compute nodes cannot see /nowhere/shared"),
        (["--time=1"], "signal_seconds=120 before the limit leave no time"),
        (["--images-per-second=0.001", "--time=10"], "below one checkpoint interval"),
        (["global_batch_size=13"], "is not a multiple of"),
        (["seed=fast"], "seed='fast' is not of type int"),
        (["--comment=two\nlines"], "must be one line of text"),
        (["--nodes=0"], "nodes=0 must be positive"),
    ],
)
def test_requests_that_cannot_run(
    site: list[str], options: list[str], message: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main([*RUN, *site, *options]) == 2
    error = capsys.readouterr().err
    assert re.search(re.escape(message), error), error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_no_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", "/nowhere")
    assert main([*RUN, "--run-dir", str(tmp_path / "run")]) == 2
    assert "there is no Slurm on this machine" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_folders_that_are_local_to_a_machine(
    site: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(site[1]).write_text("")
    assert main([*RUN, *site[:2], "--run-dir=/tmp/run"]) == 2
    assert "/tmp is local to each machine" in capsys.readouterr().err


def test_a_run_folder_of_another_recipe(
    site: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dist_train.run_folder import settle_config

    settle_config(tmp_path / "run", tiny_edm())
    before = (tmp_path / "run" / "config.json").read_bytes()
    assert main([*RUN, *site]) == 2
    assert "recipe: 'tiny_edm' -> 'rdm_debug_edm16'" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("partitoin = 'gpu'", "unknown setting site.toml.partitoin: Site has account"),
        ("signal_seconds = 'soon'", "is not of type int"),
        ("shared = ['home']", "shared='home' must be an absolute folder"),
        ("= 3", "cannot be read as a site profile"),
    ],
)
def test_site_profiles_that_are_wrong(
    profile: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site.toml").write_text(profile)
    words = ["--site", str(tmp_path / "site.toml"), "--run-dir", str(tmp_path / "run")]
    assert main([*RUN, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("axis", "message"),
    [("seed", "is not like key=value"), ("seed=1,1", "have the same name")],
)
def test_grids_that_are_wrong(axis: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training.grid_points([axis])


def test_grids() -> None:
    points = training.grid_points(["optim.denoiser.lr=1e-3,2e-3", "widths=[[1, 2], [4]]"])
    assert next(iter(points.items())) == (
        "lr_1e-3-widths__1_2_",
        ["optim.denoiser.lr=1e-3", "widths=[1, 2]"],
    )
    assert len(points) == 4
