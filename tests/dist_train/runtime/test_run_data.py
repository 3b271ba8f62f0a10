"""A run's identity includes its data: another set is rejected, wherever the change comes from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipelines.backends.build import describe_data
from data_pipelines.backends.synthetic import describe_synthetic
from data_pipelines.packed.manifest import DatasetInfo
from data_pipelines.pipeline import DataConfig
from dist_train.__main__ import main
from dist_train.checkpoint.format import MARKER, CheckpointReader, committed
from dist_train.runtime.run_data import check_alike, check_data, record_data
from dist_train.runtime.run_dir import read_run_config
from dist_train.runtime.run_files import write_settings
from models.config_io import ConfigError, to_json
from slurm.__main__ import main as slurm
from slurm.jobs.records import JobDir, JobRecord
from slurm.resources import Resources
from slurm.site import Site
from slurm.submit.preflight import RunChecks, check_run
from tests.data_sets import packed_set, write_class_dirs
from tests.ranks import run_ranks
from tests.tiny import last_of_each

TINY = [
    "quickstart_edm16",
    "data.backend=webdataset",
    "objective.unet.model_channels=8",
    "objective.unet.label_dim=3",
    "logging.wandb_project=null",
    "logging.grid_seeds=0",
    "global_batch_size=8",
    "logging.every_images=8",
    "checkpoint.every_images=8",
]


def _train(run_dir: Path, path: Path | str, *more: str, total: int = 16) -> int:
    settings = last_of_each(*TINY, f"data.path={path}", f"total_images={total}", *more)
    return main([*settings, "--run-dir", str(run_dir), "--allow-changes"])


def _begin(root: Path, total: int) -> None:
    assert _train(root / "run", root / "set", total=total) == 0


def _resume_elsewhere(root: Path) -> None:
    assert _train(root / "run", root / "copy", total=24) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run on 60 images of 3 classes; `other` has 22 of 2."""
    root = tmp_path_factory.mktemp("trained")
    packed_set(write_class_dirs(root / "images"), root / "set", resolution=16)
    packed_set(write_class_dirs(root / "few", 2, 11), root / "other", resolution=16)
    run_ranks(1, _begin, root, 8)
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of everything; its run names the copied set."""
    root = tmp_path / "root"
    shutil.copytree(trained, root)
    config = read_run_config(root / "run")
    data = replace(config.data, path=str(root / "set"))
    write_settings(root / "run", to_json(replace(config, data=data)), 2)
    return root


def _files(run_dir: Path) -> dict[str, bytes]:
    """Return all files of a run but the owner that its lock names."""
    files = {str(p.relative_to(run_dir)): p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    del files["lock"]
    return files


def _replace_on_disk(root: Path) -> None:
    shutil.rmtree(root / "set")
    (root / "other").rename(root / "set")


def _relabel(root: Path) -> None:
    """The same pictures with other labels."""
    shutil.rmtree(root / "set")
    (root / "images" / "class0").rename(root / "images" / "x")
    (root / "images" / "class1").rename(root / "images" / "class0")
    (root / "images" / "x").rename(root / "images" / "class1")
    packed_set(root / "images", root / "set", resolution=16)


def _encode_otherwise(root: Path) -> None:
    shutil.rmtree(root / "set")
    packed_set(root / "images", root / "set", resolution=16, image_format="jpeg")


CHANGES = {
    "replaced": (_replace_on_disk, [], "22 images, 2 classes"),
    "relabelled": (_relabel, [], "60 images, 3 classes"),
    "another image format": (_encode_otherwise, [], "60 images, 3 classes"),
    "path": (lambda root: None, ["data.path={root}/other"], "22 images, 2 classes"),
    "backend": (
        lambda root: None,
        ["data.backend=synthetic", "data.path="],
        "1024 images, 4",
    ),
}


@pytest.mark.parametrize(
    ("change", "without_record"),
    [(change, False) for change in CHANGES] + [("replaced", True), ("path", True)],
)
def test_another_set_is_rejected_and_nothing_changes(
    change: str, without_record: bool, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, settings, described = CHANGES[change]
    prepare(root)
    if without_record:  # the checkpoint knows it as well
        (root / "run" / "data.json").unlink()
    before = _files(root / "run")
    capsys.readouterr()
    assert _train(root / "run", root / "set", *(text.format(root=root) for text in settings)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "another set" in error
    assert described in error
    assert "60 images, 3 classes" in error or without_record
    assert "put back the set" in error
    assert _files(root / "run") == before

    config = read_run_config(root / "run")  # submission says the same
    if not settings:
        with pytest.raises(ConfigError, match="another set"):
            check_run(config, root / "run", Resources(), Site(), RunChecks())


def test_submission_rejects_another_set(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = root / "run"
    record = JobRecord(
        job_id="1", kind="train", name="run", cluster="local", submitted=0.0, cwd=str(root),
        code=str(root), resources=Resources(gpus_per_node=0), logs=str(root / "logs"),
    )  # fmt: skip
    JobDir(run_dir).write(record)
    before = _files(run_dir)
    here = ["--cluster=local", "--tasks-per-node=1", "--dry-run"]
    new = ["train", *TINY, f"data.path={root}/other", "--allow-changes", "--run-dir", str(run_dir)]
    assert slurm([*new, *here, "--gpus-per-node=0", "total_images=8"]) == 2
    _replace_on_disk(root)
    assert slurm(["resume", str(run_dir), *here]) == 2
    assert (
        capsys.readouterr().err.count(
            "was started with another set than data.path (data.json: 60 images"
        )
        == 2
    )
    assert _files(run_dir) == before


def test_another_selection_is_another_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mix = f'data.mix=[{{"path": "{root}/other"}}]'
    for setting in ("data.subset=20", 'data.classes=["class0"]', "data.shuffle_window=8", mix):
        assert _train(root / "run", root / "set", setting) == 2
    assert capsys.readouterr().err.count("was started with other settings (") == 4


@pytest.mark.distributed
def test_the_same_set_elsewhere_is_fine(root: Path) -> None:
    packed_set(root / "images", root / "copy", resolution=16, shard_images=7)
    shutil.rmtree(root / "set")
    run_ranks(1, _resume_elsewhere, root)
    assert CheckpointReader(committed(root / "run")[-1]).state.images_seen == 24
    assert json.loads((root / "run" / "data.json").read_text())["num_images"] == 60


@pytest.mark.distributed
def test_an_old_run_records_its_set_and_says_so(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (root / "run" / "data.json").unlink()
    marker = committed(root / "run")[-1] / MARKER
    content = json.loads(marker.read_text())
    del content["data_digest"], content["checksum"]  # as older versions wrote it
    marker.write_text(json.dumps(content))
    run_ranks(1, _begin, root, 16)
    assert "data.json: recorded the set" in capfd.readouterr().out
    info = describe_data(read_run_config(root / "run").data)
    assert check_data(root / "run", info)
    assert CheckpointReader(committed(root / "run")[-1]).state.data_digest == info.identity


RECORDS = ["", "[]", "null", "{", '{"format_version": 1}', "\udcff", "{" * 100_000]


@pytest.mark.parametrize("text", RECORDS)
def test_a_damaged_record_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"data\.json") as caught:
        check_data(tmp_path, describe_synthetic(16))
    assert "\n" not in str(caught.value)


def test_any_changed_character_of_the_record_is_found(tmp_path: Path) -> None:
    record_data(tmp_path, describe_synthetic(16))
    text = (tmp_path / "data.json").read_text()
    for place in (text.index("1024"), text.index('"digest"') + 15, text.index("one wave")):
        changed = text[:place] + ("7" if text[place] != "7" else "6") + text[place + 1 :]
        (tmp_path / "data.json").write_text(changed)
        with pytest.raises(ValueError, match=r"data\.json was changed"):
            check_data(tmp_path, describe_synthetic(16))


def test_the_order_of_visits_is_part_of_it(tmp_path: Path) -> None:
    """Windowed shuffles depend on the shards, and remote sets are shuffled within windows."""
    images = write_class_dirs(tmp_path / "images")
    for size in (16, 7):
        packed_set(images, tmp_path / str(size), resolution=16, shard_images=size)

    def described(path: str, **settings: int) -> DatasetInfo:
        data = DataConfig(path=path, resolution=16, backend="webdataset", **settings)  # type: ignore
        return describe_data(replace(data, cache=str(tmp_path / "cache")))

    local, fewer = described(f"{tmp_path}/16"), described(f"{tmp_path}/7")
    assert local == fewer
    assert local.identity == local.digest
    record_data(tmp_path, described(f"{tmp_path}/16", shuffle_window=8))
    assert check_data(tmp_path, described(f"{tmp_path}/16", shuffle_window=8))
    for other in (
        local,
        described(f"{tmp_path}/16", shuffle_window=4),
        described(f"{tmp_path}/7", shuffle_window=8),
    ):
        with pytest.raises(ConfigError, match="the same 60 images in another order"):
            check_data(tmp_path, other)
    remote = described(f"pipe:cat {tmp_path}/16/{{}}")
    assert remote.digest == local.digest
    assert remote.identity != local.identity


def _on_two_ranks() -> None:
    from dist_train.runtime.world import init_world

    world = init_world()
    info = describe_synthetic(16 << world.rank)  # as if each node's disk had its own
    with pytest.raises(ConfigError, match=r"rank . has another set at data.path"):
        check_alike(info, world)
    check_alike(describe_synthetic(16), world)


@pytest.mark.distributed
def test_all_ranks_must_have_one_set() -> None:
    run_ranks(2, _on_two_ranks)
