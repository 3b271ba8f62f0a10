"""What is rejected at submission: one clear line, exit code 2, nothing queued or written."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image

from dist_train.recipes import find_recipe
from dist_train.runtime.run_dir import settle_config
from models.config_io import ConfigError
from models.grid import assignments, grid_points
from slurm import slurm_cli
from slurm.__main__ import main
from slurm.continuous_eval import command
from slurm.jobs.records import JobDir, JobRecord
from slurm.resources import Resources
from slurm.site import Site
from slurm.submit import preflight
from slurm.submit.preflight import Partition, RunChecks
from tests.slurm.project import make_reference, make_run
from tests.tiny import tiny_edm

RUN = ["train", "rdm_debug_edm16", "--nodes=2", "--gpus-per-node=4"]
PARTITIONS = [Partition("main", True, 4, 2880), Partition("high", False, 4, None)]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A login node with the test cluster's partitions and accounts, and nothing behind them."""

    def answer(command: list[str], timeout: float = 0.0) -> str:
        if command[0] == "sinfo":
            return "48|gpu:4\n"
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
        (["data.backend=webdataset", "data.path=/nowhere"], "/nowhere is no directory"),
        (["--images-per-second=0"], "must be positive"),
        (["--time=30", "--time-min=40"], "min_minutes=40 is above minutes=30"),
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


ARGUMENTS = {
    "eval {run} --reference {root}/no.npz": "no.npz does not exist",
    "eval {root}/no --reference {root}/ref.npz": "no does not exist",
    "eval {run} --reference {root}/ref.npz --protocol fidd": "protocol 'fidd' is not one of rdm_",
    "eval {run} --reference {root}/ref.npz --metrics fdd": "metric 'fdd' is not one of fd,",
    "eval {run} --reference {root}/ref.npz --detector inceptionn": "detector 'inceptionn' is not",
    "eval {run} --reference {root}/ref.npz --detector inception": "needs its weights file",
    "eval {run} --reference {root}/ref.npz --detector clip --weights w": "file w cannot be read",
    "eval {run} --reference {root}/ref.npz --pipeline clean": "does not fit detector effnet_lite0",
    "eval {run} --reference {root}/ref.npz --seeds a-b": "a-b",
    "eval {run} --reference {root}/ref.npz --sseeds 0-9": "unrecognized arguments: --sseeds",
    "eval {run} --reference {root}/ref.npz samplng.steps=2": "unknown setting 'samplng.steps'",
    "sample {root}": "is not a snapshot",
    "sample {run} --seeds": "expected one argument",
    "pack imagez {root} {root}/set --resolution 64": "invalid choice: 'imagez'",
    "pack images {root}/no {root}/set --resolution 64": "no does not exist",
    "pack images {root}/set --resolution 64": "images needs a source",
    "pack images {root} {root}/set": "the following arguments are required: --resolution",
    "pack images {root} {root}/set --resolution 64 --format jpeg --quality 900": (
        "quality=900 must be in 1..95"
    ),
    "pack images {root} {root}/set --resolution 64 --quality 90": "--quality has no effect",
    "pack images {root} {root}/set --resolution 64 --limit 1e9": "--limit: invalid int value",
    "pack images {root} {root}/set --resolution 64 --limt 9": "unrecognized arguments: --limt 9",
    "pack images {root} {root}/set --resolution 64 --tasks 0": "--tasks=0 must be at least 1",
    "sweep rdm_debug_edm16 --grid sed=0,1": "unknown setting 'sed'",
    "sweep rdm_debug_edm16 --grid objective.sampling.steps=9,18": (
        "steps_9 and steps_18 would train the same weights: training does not depend on"
        " objective.sampling.steps; train one run, and evaluate it with each value: relaywave eval"
        " sweep RUN --grid sampling.steps=..."
    ),
    "sweep rdm_debug_relay64 --grid objective.sampling.eta=0,0.1 --grid seed=0,1": (
        "relaywave eval sweep RUN --grid sampling.eta=..."
    ),
    "eval-sweep {run} --reference {root}/ref.npz --grid sampling.stps=9": (
        "point stps_9: unknown setting"
    ),
    "eval-sweep {run} --reference {root}/ref.npz --grid sampling.steps=9 --parallel 0": (
        "--parallel=0 must be at least 1"
    ),
    'sweep rdm_debug_edm16 --grid optim=[{{"a":1,"a":2}}]': "--grid optim: the key 'a' is given",
    "sweep rdm_debug_edm16 --grid logging.every_images=8,16": "depend on logging.every_images",
    "sweep rdm_debug_edm16 --grid checkpoint.keep_last=1,2": "depend on checkpoint.keep_last",
    "sweep rdm_debug_edm16 --grid seed=0,1 --grid objective.sampling.rho=5,7": (
        "seed_0-rho_5 and seed_0-rho_7 would train the same weights"
    ),
    "sweep rdm_debug_edm16 --grid optim.denoiser.lr=1e-3,0.001": "all their settings are equal",
    "sweep rdm_debug_edm16 seed=3 --grid seed=0,1": "seed is given twice",
    "sweep rdm_debug_edm16 --grid data.path=a,b": "data.backend=synthetic generates its images",
    "train rdm_debug_edm16 sharding.nodes=2 --nodes=1": "--nodes=1 contradicts sharding.nodes=2",
    "sweep rdm_debug_edm17 --grid seed=0,1": "there is no recipe 'rdm_debug_edm17'",
    "workflow quikstart": "there is no workflow 'quikstart'",
    "workflow quickstart edm61:seed=3": "no step 'edm61' is trained; known are edm16,",
    "workflow quickstart edm16:sed=3": "unknown setting 'sed'",
    "workflow quickstart --images=0": "--images=0: at least 2 can be evaluated",
    "workflow rdm_imagenet256": "the papers' experiments are in `relaywave paper list`",
    "paper run rdm_table2": "needs the images as downloaded: --source imagenet=PATH",
    "paper run rdm_table1 --nodes=1 --source celebahq={root}/pictures": "needs its weights file",
    "reconcile {run} --plan {root}/plan.json": "protocol quick: {root}/no.npz does not exist",
    "resume {run}": "was never submitted",
}


@pytest.mark.parametrize("text", ARGUMENTS)
def test_arguments_that_another_command_would_reject(
    text: str, site: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run(tmp_path / "trained")
    make_reference(tmp_path / "ref.npz")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (256, 256)).save(tmp_path / "pictures" / "one.png")
    schedule = {"protocols": [{"name": "quick", "words": ["--reference", f"{tmp_path}/no.npz"]}]}
    (tmp_path / "plan.json").write_text(json.dumps(schedule))
    before = sorted(tmp_path.rglob("*"))
    arguments = text.format(run=run_dir, root=tmp_path).split()
    product = {
        "workflow": "--root",
        "paper": "--root",
        "eval": "--out",
        "eval-sweep": "--out",
        "sample": "--out",
        "sweep": "--out",
        "train": "--run-dir",
    }
    command = arguments[0]
    place = [product[command], str(tmp_path / "product")] if command in product else []
    small = [] if command in ("reconcile", "resume") else ["--gpus-per-node=0"]
    assert main([*arguments, *place, *small, *site[:2]]) == 2
    error = capsys.readouterr().err
    assert ARGUMENTS[text].format(root=tmp_path) in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


def test_what_an_earlier_job_makes_need_not_be_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "result.json"), "--dry-run", "--dependency=afterok:12"]
    assert main(["eval", str(tmp_path / "later"), "--reference", "later.npz", *out]) == 0
    assert "#SBATCH --dependency=afterok:12" in capsys.readouterr().out


@pytest.mark.parametrize("measured_run", ["run", "other"])
def test_a_time_limit_below_one_checkpoint_interval(
    site: list[str], tmp_path: Path, measured_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the throughput of the run itself, or of one of its recipe in the same directory."""
    measured = tmp_path / measured_run
    measured.mkdir()
    (measured / "metrics.jsonl").write_text(
        '{"images_seen": 8, "step": 1, "speed/images_per_second": 0.001}\n'
    )
    settle_config(measured, find_recipe("rdm_debug_edm16")())
    assert main([*RUN, *site, "--time=60", "--time-min=10"]) == 2
    error = capsys.readouterr().err
    assert "--time-min=10 minutes is below one checkpoint interval" in error
    assert f"measured by {measured_run}" in error


def test_a_note_says_that_a_time_limit_was_not_checked(
    site: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*site, "--dry-run", "checkpoint.every_images=5800"]
    assert main([*RUN, *options, "--time=60"]) == 0
    note = capsys.readouterr().err
    assert "5,800 images to each checkpoint in 58 minutes need 1.67 images/s" in note
    assert main([*RUN, *options, "--time=60", "--images-per-second=2"]) == 0
    assert capsys.readouterr().err == ""


def test_no_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", "/nowhere")
    assert main([*RUN, "--run-dir", str(tmp_path / "run")]) == 2
    assert "there is no Slurm on this machine" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("nodes", "reservations", "rejected"),
    [
        ("idle\nmixed", "No reservations in the system", True),
        ("idle\ndown*", "No reservations in the system", False),
        ("idle", "ReservationName=maintenance StartTime=2030-01-01T00:00:00", False),
    ],
)
def test_only_sbatch_can_tell_what_unavailable_nodes_will_allow_later(
    nodes: str, reservations: str, rejected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = "Requested node configuration is not available"
    monkeypatch.setattr(preflight, "submission_problem", lambda script, environment: problem)
    monkeypatch.setattr(
        slurm_cli, "run_slurm", lambda command: nodes if command[0] == "sinfo" else reservations
    )
    expected = pytest.raises(ValueError, match=problem) if rejected else nullcontext()
    with expected:
        preflight.check_script("")


def test_directories_that_are_local_to_a_machine(
    site: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(site[1]).write_text("")
    assert main([*RUN, *site[:2], "--run-dir=/tmp/run"]) == 2
    assert "/tmp is local to each machine" in capsys.readouterr().err


def test_a_run_directory_of_another_recipe(
    site: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settle_config(tmp_path / "run", tiny_edm())
    before = (tmp_path / "run" / "config.json").read_bytes()
    assert main([*RUN, *site]) == 2
    assert "recipe: 'tiny_edm' -> 'rdm_debug_edm16'" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_the_same_arguments_again_once_training_has_settled_the_precision(
    site: list[str], tmp_path: Path
) -> None:
    config = find_recipe("rdm_debug_edm16")()
    settle_config(tmp_path / "run", config, device=torch.device("cpu"))
    assert config.compute.precision == "auto"
    preflight.check_run(config, tmp_path / "run", Resources(), Site(), RunChecks())


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("partitoin = 'gpu'", "unknown setting site.toml.partitoin: Site has account"),
        ("signal_seconds = 'soon'", "is not of type int"),
        ("shared = ['home']", "shared='home' must be an absolute directory"),
        ("= 3", "cannot be read as a site profile"),
    ],
)
def test_invalid_site_profiles(
    profile: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site.toml").write_text(profile)
    options = ["--site", str(tmp_path / "site.toml"), "--run-dir", str(tmp_path / "run")]
    assert main([*RUN, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("seed", "is not like key=value"),
        ("seed=1,1", "have the same name"),
        ("seed=[]", "has no value"),
        ("seed=1 seed=2", "--grid seed=... is given twice"),
    ],
)
def test_invalid_grids(axis: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid_points(axis.split())


def test_grids() -> None:
    points = grid_points(["optim.denoiser.lr=1e-3,2e-3", "widths=[[1, 2], [4]]"])
    name, point = next(iter(points.items()))
    assert name == "lr_1e-3-widths__1_2_"
    assert assignments(point) == ["optim.denoiser.lr=1e-3", "widths=[1, 2]"]
    assert len(points) == 4


def test_the_former_name_of_workflow_is_still_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", "list"]) == 0
    assert "quickstart" in capsys.readouterr().out


@pytest.mark.parametrize("copy", ["gone", "old"])
def test_resume_rejects_code_that_a_present_job_cannot_run(
    copy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copies of before the modules moved have `slurm/jobs.py`, which knows no `slurm.jobs.jobs`."""
    run_dir, code = make_run(tmp_path / "run"), tmp_path / copy
    if copy == "old":
        (code / "slurm").mkdir(parents=True)
        (code / "slurm" / "jobs.py").touch()
    JobDir(run_dir).write(
        JobRecord(job_id="1", kind="train", name="run", cluster="local", submitted=0.0,
                  cwd=str(tmp_path), code=str(code), logs="", resources=Resources())
    )  # fmt: skip
    assert main(["resume", str(run_dir), "--cluster=local"]) == 2
    assert "add --update-code to run the present code" in capsys.readouterr().err
    assert len(JobDir(run_dir).records()) == 1


@pytest.mark.parametrize(
    ("metrics", "best", "message"),
    [
        ("fd:block4", "quick:fd_effnet_lite0_block4.distance", ""),
        ("pr:block4,kid:block4", "quick:pr_effnet_lite0_block4.recall", ""),
        ("fd:block4", "quick:fid.distance", "use one of quick:fd_effnet_lite0_block4.distance"),
        ("fd:block4", "quick:fd_effnet_lite0_block4", "did you mean"),
        ("fd:block4", "quick:fd_effnet_lite0_block4.", "use one of"),
        ("fd:block4", "quick:fd_effnet_lite0_block4.score", "block4.distance"),
        ("fd:block4", "full:fd_effnet_lite0_block4.distance", "full:kid_effnet_lite0_block4"),
        ("fd_per_class:block4", "quick:fd_per_class_effnet_lite0_block4.class_7", ""),
        ("fd_per_class:block4", "quick:fd_per_clas_effnet_lite0_block4.mean", "did you mean"),
    ],
)
def test_the_best_is_one_of_the_values_that_a_plan_gives(
    metrics: str, best: str, message: str, tmp_path: Path
) -> None:
    make_reference(tmp_path / "ref.npz")
    words = ["--reference", f"{tmp_path}/ref.npz", "--metrics"]
    protocols = [
        {"name": "quick", "words": [*words, metrics]},
        {"name": "full", "words": [*words, "kid:block4"]},
    ]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"protocols": protocols, "best": best}))
    if not message:
        assert command.read_checked(path).best == best
        return
    with pytest.raises(ConfigError, match=f"best='{best}' is none of the values.*{message}") as why:
        command.read_checked(path)
    assert "\n" not in str(why.value)
