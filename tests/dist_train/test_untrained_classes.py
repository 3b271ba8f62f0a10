"""Classes of the network that no image of the set has: warned of, recorded, and never drawn."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipelines.backends.build import describe_data
from data_pipelines.pipeline import DataConfig, MixedSet
from dist_train.build import build_trainer
from dist_train.config import LoggingConfig, RunConfig
from dist_train.dry_run import check_run
from dist_train.planning.checks import describe_untrained, trained_classes
from dist_train.runtime.world import init_world
from evaluation.samples.generate import GeneratedImages, SampleSpec
from models.snapshot import SnapshotError, newest_snapshot, read_snapshot, sampled_classes
from tests.data_sets import packed_set, write_class_dirs
from tests.tiny import BATCH, TINY

SEEDS = tuple(range(40))


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack a set whose classes are numbered 0, 2 and 3."""
    root = tmp_path_factory.mktemp("gaps")
    source = write_class_dirs(root / "named", classes=3, per_class=6)
    for number, path in zip((0, 2, 3), sorted(source.iterdir()), strict=True):
        shutil.move(path, root / "source" / str(number))
    packed_set(root / "source", root / "set", resolution=8)
    return root / "set"


def _config(data: DataConfig, label_dim: int) -> RunConfig:
    config = TINY["tiny_edm"]()
    unet = replace(config.objective.unet, label_dim=label_dim)  # type: ignore[union-attr]
    return replace(
        config,
        data=data,
        objective=replace(config.objective, unet=unet),
        total_images=BATCH,
        logging=LoggingConfig(every_images=BATCH, grid_seeds=4),
    )


def test_class_counts_are_those_of_what_is_drawn(gaps: Path) -> None:
    data = DataConfig(path=str(gaps), backend="webdataset", resolution=8)
    assert describe_data(data).class_counts == (6, 0, 6, 6)
    assert describe_data(replace(data, classes=("2", "3"))).class_counts == (0, 0, 6, 6)
    mixed = replace(data, mix=(MixedSet(path=str(gaps)),))
    assert describe_data(mixed).class_counts == (12, 0, 12, 12)
    assert trained_classes(4, describe_data(data)) == [0, 2, 3]
    assert describe_untrained(0, describe_data(data)) == ""


@pytest.mark.parametrize(
    ("label_dim", "classes", "trained", "said"),
    [
        (
            4,
            (),
            [0, 2, 3],
            "label_dim=4, but the set has images of 3 classes: the other 1 (1)",
        ),
        (9, (), [0, 2, 3], "the other 6 (1, 4, 5, 6, 7, ...) will not be trained"),
        (4, ("3",), [3], "the set has images of 1 classes: the other 3 (0, 1, 2)"),
    ],
)
def test_classes_without_images_are_said_and_not_drawn(
    gaps: Path, label_dim: int, classes: tuple[str, ...], trained: list[int], said: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = DataConfig(path=str(gaps), backend="webdataset", resolution=8, classes=classes)
    config = _config(data, label_dim)
    assert said in check_run(config, tmp_path, 1, data_later=False)
    build_trainer(config, tmp_path, init_world()).fit()
    assert said in capsys.readouterr().out

    snapshot = read_snapshot(newest_snapshot(tmp_path))
    assert list(sampled_classes([snapshot])) == trained
    for policy in ("balanced", "random"):
        images = GeneratedImages([snapshot], SampleSpec(SEEDS, policy))  # type: ignore[arg-type]
        labels = images.labels(range(len(SEEDS)))
        assert labels is not None
        assert set(labels.tolist()) == set(trained)
        assert images.identity["classes"] == trained


def test_all_classes_are_drawn_as_before_where_all_were_trained(tmp_path: Path) -> None:
    config = _config(DataConfig(backend="synthetic", resolution=8), 4)
    assert check_run(config, tmp_path, 1, data_later=False) == ""
    build_trainer(config, tmp_path, init_world()).fit()
    snapshot = read_snapshot(newest_snapshot(tmp_path))
    images = GeneratedImages([snapshot], SampleSpec(SEEDS))
    labels = images.labels(range(len(SEEDS)))
    assert labels is not None
    assert labels.tolist() == [seed % 4 for seed in SEEDS]
    assert "classes" not in images.identity

    before = {k: v for k, v in snapshot.provenance.items() if k != "trained_classes"}
    older = replace(snapshot, provenance={**before, "class_names": ["a", "b"]})
    assert sampled_classes([older]) == (0, 1)
    other = replace(snapshot, provenance={"trained_classes": [2, 3]})
    assert sampled_classes([snapshot, other]) == (2, 3)
    with pytest.raises(SnapshotError, match="no class was trained in all stages"):
        sampled_classes([older, other])
