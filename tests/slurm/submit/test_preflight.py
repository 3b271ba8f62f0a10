"""What ranks would reject before their first step is rejected at submission, in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dist_train.__main__ as training
from dist_train.checkpoint.format import committed
from evaluation.metrics.statistics import FeatureSet, Gaussian
from evaluation.reference.statistics_file import write_reference
from slurm.__main__ import main
from tests.data_sets import packed_set, write_class_dirs
from tests.slurm.project import make_reference, make_run
from tests.tiny import last_of_each

SMALL = ["objective.unet.model_channels=8", "data.workers=1", "logging.wandb_project=null"]
ALONE = ["--nodes=1", "--gpus-per-node=0", "--cluster=local"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack sets: `three` classes, others that do not match it, and damaged ones."""
    root = tmp_path_factory.mktemp("sets")
    source = write_class_dirs(root / "source", classes=3, per_class=6)
    for name in ("three", "cut", "lost"):
        packed_set(source, root / name)
    packed_set(source, root / "larger", resolution=36)
    packed_set(source, root / "sixty-four", resolution=64)
    make_run(root / "stage")
    packed_set(write_class_dirs(root / "others", classes=2, per_class=6), root / "two")
    shard = next((root / "cut").glob("shards/*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1])
    next((root / "lost").glob("shards/*.tar")).unlink()
    return root


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("edm16", ["objective.unet.label_dim=2"], "three has 3 classes; set it to 3"),
        ("edm16", ["data.resolution=32"], "the objective is for 16x16 images"),
        ("edm16", ["data.path={sets}/larger"], "does not divide the 36 pixels"),
        ("edm16", ["data.path={sets}/cut"], "the shard is damaged"),
        ("edm16", ["data.path={sets}/lost"], "cannot be read: No such file"),
        ("edm16", ["data.path={sets}/source"], "holds no packed set"),
        ("edm16", ['data.classes=["dog"]'], "has no 'dog'; it has class0"),
        ("edm16", ["data.subset=19"], "subset=19 of 18 images"),
        ("edm16", ['data.mix=[{{"path": "{sets}/larger"}}]'], "pack them alike"),
        ("edm16", ['data.mix=[{{"path": "{sets}/two"}}]'], "have other class tables"),
        ("edm16", ["data.backend=ffcv"], "ffcv|no complete set.beton"),
        ("edm16", ["global_batch_size=10", "micro_batch_size=4"], "set it to 8 or 12"),
        ("edm16", ['optim={{"x": {{"lr": 1}}}}'], "optim has settings for"),
        ("edm16", ['sharding.deepspeed={{"fp16": {{"enabled": true}}}}'], "contradicts the recipe"),
        ("edm16", ['sharding.deepspeed={{"gradient_clipping": 3}}'], "contradicts the recipe"),
        ("edm16", ["sharding.offload=parameters"], "needs sharding.zero_stage=3"),
        ("relay64", ["logging.grid_previous={sets}/three"], "is not a snapshot"),
        ("relay64", ["logging.grid_previous={sets}/stage"], "the previous stage has 4 classes"),
    ],
)
def test_with_the_same_message(
    sets: Path, tmp_path: Path, recipe: str, overrides: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = sets / ("sixty-four" if recipe == "relay64" else "three")
    settings = [f"quickstart_{recipe}", f"data.path={data}", "objective.unet.label_dim=3", *SMALL]
    changed = last_of_each(*settings, *(text.format(sets=sets) for text in overrides))
    arguments = [*changed, "--run-dir"]
    assert main(["train", *arguments, str(tmp_path / "submitted"), *ALONE]) == 2
    ours = capsys.readouterr().err
    assert not (tmp_path / "submitted").exists(), "nothing is written"
    assert any(part in ours for part in message.split("|")), ours
    assert ours.count("\n") == 1

    assert training.main([*arguments, str(tmp_path / "trained")]) == 2
    theirs = capsys.readouterr().err
    assert ours == theirs
    assert not committed(tmp_path / "trained")


def test_each_point_of_a_sweep(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--grid=objective.unet.label_dim=3,2", "--out", str(tmp_path / "sweep")]
    arguments = ["quickstart_edm16", f"data.path={sets}/three", *SMALL, *grid]
    assert main(["sweep", *arguments, *ALONE]) == 2
    assert "error: label_dim_2: label_dim=2, but" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_set_that_only_nodes_have_is_not_checked_here(sets: Path, tmp_path: Path) -> None:
    arguments = [
        "quickstart_edm16",
        "data.path=/nowhere",
        *SMALL,
        "--run-dir",
        str(tmp_path / "run"),
    ]
    assert main(["train", *arguments, "--nodes=1", "--gpus-per-node=0", "--dry-run"]) == 2
    elsewhere = ["--data-on-nodes", "--dry-run", "--nodes=1", "--gpus-per-node=0"]
    assert main(["train", *arguments, *elsewhere]) == 0


def test_settings_of_a_run_without_steps_can_be_corrected(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run(tmp_path / "run")
    dry = ["--run-dir", str(run_dir), "--nodes=1", "--gpus-per-node=0", "--dry-run"]
    assert main(["train", "rdm_debug_edm16", "seed=1", *dry]) == 2
    assert "was started with other settings (seed: 0 -> 1)" in capsys.readouterr().err
    for file in (run_dir / "snapshots").rglob("*.*"):
        file.unlink()
    next((run_dir / "snapshots").iterdir()).rmdir()
    assert main(["train", "rdm_debug_edm16", "seed=1", *dry]) == 0, "it never made a step"
    assert main(["train", "wavediff_debug", *dry]) == 2
    assert "recipe: 'rdm_debug_edm16' -> 'wavediff_debug'" in capsys.readouterr().err


def test_damaged_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run(tmp_path / "run")
    (run_dir / "checkpoints" / f"{8:012d}").mkdir(parents=True)
    dry = ["--run-dir", str(run_dir), "--nodes=1", "--gpus-per-node=0", "--dry-run"]
    assert main(["train", "rdm_debug_edm16", *dry]) == 2
    assert "no checkpoint of" in capsys.readouterr().err


def test_the_classes_of_a_source_that_a_workflow_packs(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, source = ["--root", str(tmp_path / "all")], ["--source", str(sets / "source")]
    arguments = ["workflow", "quickstart", *root, "--gpus-per-node=0", "--dry-run", *source]
    assert main([*arguments, "edm16:objective.unet.label_dim=2"]) == 2
    assert "edm16: label_dim=2, but " in capsys.readouterr().err
    assert main(arguments) == 0
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{sets}/three", "{new}"], "three holds no image"),
        (["{sets}/source", "{sets}/three"], "three holds another set: "),
        (["{sets}/source", "{sets}/source"], "source holds other files"),
        (["{sets}/source", "{new}", "--holdout=99"], "holdout=99 of 18 items leaves none"),
        (["{sets}/source", "{new}", "--workers=0"], "workers=0 must be at least 1"),
    ],
)
def test_packs_that_their_tasks_would_reject(
    sets: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = [text.format(sets=sets, new=tmp_path / "new") for text in arguments]
    assert main(["pack", "folder", *chosen, "--resolution=16", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_evaluations_that_their_ranks_would_reject(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_reference(tmp_path / "ref.npz")
    arguments = ["eval", str(sets / "stage"), "--reference", str(tmp_path / "ref.npz"), "--dry-run"]
    arguments += ["--out", str(tmp_path / "result.json"), "--gpus-per-node=0"]

    def rejection(*options: str) -> str:
        assert main([*arguments, *options]) == 2
        return capsys.readouterr().err

    assert main(arguments) == 0
    assert "1 image(s) are too few" in rejection("--seeds=0")
    assert "the detector has the taps block4," in rejection("--metrics=fd:nowhere")
    assert "was made differently" in rejection("--reference", str(other_reference(tmp_path)))
    weights = next((sets / "stage").glob("snapshots/*/weights.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    assert "the file is damaged or was replaced" in rejection()
    weights.write_bytes(content)


def other_reference(directory: Path) -> Path:
    """Write statistics that another detector made."""
    gaussian = Gaussian(np.zeros(2), np.eye(2), 9)
    meta = {"detector": {"name": "inception", "pipeline": "tf1", "weights_sha256": ""}}
    path = directory / "other.npz"
    write_reference(path, FeatureSet(meta, 9, {"pool": gaussian}, {}, [], None))
    return path
