"""Ranks with unlike requests all stop, with one line that says in what they differ."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dist_train.runtime.world import init_world
from evaluation.arguments import parse
from evaluation.commands import COMMANDS
from tests.evaluation.test_commands import write_images
from tests.evaluation.test_ranks import call, write_generator
from tests.ranks import run_ranks

DRAW = ["run", "model", "--seeds", "0-3", "--batch-size", "2", "--reference", "images"]
DRAW += ["--out", "result.json", "--metrics", "fd:block4"]
LOOK = [
    "run",
    "images",
    "--reference",
    "reference.npz",
    "--out",
    "r.json",
    "--metrics",
    "fd:block4",
]


def change_nothing(place: Path) -> None:
    del place


def change_image(place: Path) -> None:
    path = place / "images" / "002.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)


def change_name(place: Path) -> None:
    (place / "images" / "002.png").rename(place / "images" / "0022.png")


def remove_image(place: Path) -> None:
    (place / "images" / "002.png").unlink()


def change_model(place: Path) -> None:
    shutil.rmtree(place / "model")
    write_generator(place / "model", 1)


def change_reference(place: Path) -> None:
    call(["reference", str(write_images(place / "others", 4, seed=9)), str(place / "o.npz")])
    (place / "o.npz").rename(place / "reference.npz")


def change_weights(place: Path) -> None:
    (place / "w.pth").write_bytes(b"other weights")


@dataclass(frozen=True)
class Case:
    """What differs on rank 1, and by what name the line says it."""

    said: str
    command: list[str] = field(default_factory=lambda: DRAW)
    change: Callable[[Path], None] = change_nothing
    more: tuple[str, ...] = ()


CASES = {
    "weights of the model": Case("images.snapshots.1.weights_sha256 is", change=change_model),
    "settings of the sampler": Case(
        "images.snapshots.1.objective.", more=("generator.compute_dtype=bfloat16",)
    ),
    "seeds": Case("images.spec.seeds is 0-3 on rank 0, but 0-4 on rank 1", more=("--seeds", "0-4")),
    "post-processing": Case("images.spec.post.codec is png on", more=("--codec", "jpeg")),
    "images": Case("images is 4 images of digest", LOOK, change_image),
    "names of images": Case("images is 4 images of digest", LOOK, change_name),
    "number of images": Case("but 3 images of digest", LOOK, remove_image),
    "reference images": Case("reference.images is 4 images of digest", change=change_image),
    "reference file": Case("reference.statistics is of sha256", LOOK, change_reference),
    "weights of the detector": Case(
        "detector.weights is of sha256", [*LOOK, "--weights", "w.pth"], change_weights
    ),
    "metrics": Case("metrics.names is ['fd:block4'] on", LOOK, more=("--metrics", "fd:head")),
    "resamples": Case("metrics.bootstrap is 0 on", [*LOOK, "--bootstrap", "0"],
                      more=("--metrics", "kid:block4", "--bootstrap", "9")),
    "number of results": Case(
        "number of requests is 1 on rank 0, but 2 on rank 1",
        ["run", "images", "--reference", "images", "--out", "r.json", "--detector", "inception",
         "--weights", "w.pth"],
        more=("--detector", "inception,vgg16", "--weights",
              "inception=w.pth,vgg16=w.pth"),
    ),
    "samples": Case("spec.seeds is 0-3 on", ["sample", "model", "--out", "s", "--seeds", "0-3"],
                    more=("--seeds", "0-5")),
    "a reference's images": Case("images is 4 images", ["reference", "images", "o.npz"],
                                 change_image),
    "a reference's taps": Case("taps is ['block4'] on rank 0, but ['head'] on rank 1",
                               ["reference", "images", "o.npz", "--taps", "block4"],
                               more=("--taps", "head")),
    "a sheet": Case("sets.1 is 4 images of digest",
                    ["sheet", "classes", "images", "--out", "s.png"], change_image),
}  # fmt: skip


def work_in_own_directory(place: Path, command: list[str], more: tuple[str, ...]) -> None:
    """Do a rank's part in a directory of its own; write down how that ended."""
    world = init_world()
    own = place / str(world.rank)
    with contextlib.chdir(own):
        work = COMMANDS[command[0]](parse([*command, *(more if world.rank else ())]))
        assert work is not None
        try:
            work(world)
            said = "nothing"
        except ValueError as error:
            said = str(error)
    (own / "said").write_text(said)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("prepared")
    write_images(place / "images", 4, size=16)
    write_generator(place / "model", 0)
    from evaluation.detectors.effnet import weights_path

    shutil.copy(weights_path(), place / "w.pth")
    call(["reference", str(place / "images"), str(place / "reference.npz")])
    return place


@pytest.fixture
def places(prepared: Path, tmp_path: Path) -> Path:
    """A directory for each of two ranks, which hold the same."""
    for rank in range(2):
        shutil.copytree(prepared, tmp_path / str(rank))
    return tmp_path


def said_on_two_ranks(places: Path, command: list[str], more: tuple[str, ...] = ()) -> str:
    """Return the line with which both ranks ended; they must end with the same."""
    run_ranks(2, work_in_own_directory, places, command, more)
    first, second = ((places / str(rank) / "said").read_text() for rank in range(2))
    assert first == second
    return first


@pytest.mark.distributed
@pytest.mark.parametrize("name", CASES)
def test_unlike_requests_are_rejected_on_all_ranks(places: Path, name: str) -> None:
    case = CASES[name]
    before = {path.name for path in (places / "0").iterdir()}
    case.change(places / "1")
    said = said_on_two_ranks(places, case.command, case.more)
    assert case.said in said
    assert said.startswith("the ranks have different requests: ")
    assert "\n" not in said
    assert {path.name for path in (places / "0").iterdir()} == before | {"said"}


@pytest.mark.distributed
@pytest.mark.parametrize("command", [DRAW, LOOK])
def test_ranks_that_see_the_same_in_other_places_are_not_rejected(
    places: Path, command: list[str]
) -> None:
    assert said_on_two_ranks(places, [*command, "--out", str(places / "result.json")]) == "nothing"


@pytest.mark.distributed
def test_what_one_rank_cannot_read_is_said_on_all(places: Path) -> None:
    (places / "1" / "images" / "002.png").write_bytes(b"no image")
    said = said_on_two_ranks(places, LOOK)
    assert said.startswith("rank 1: ")
    assert "002.png" in said


def work_on_unlike_devices(place: Path, command: list[str]) -> None:
    torch.set_float32_matmul_precision("high" if init_world().rank == 1 else "highest")
    try:
        work_in_own_directory(place, command, ())
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.distributed
def test_ranks_that_compute_in_other_ways_are_rejected(places: Path) -> None:
    run_ranks(2, work_on_unlike_devices, places, LOOK)
    said = "TF32.matrix_products is False on rank 0, but True on rank 1"
    assert all(said in (places / rank / "said").read_text() for rank in "01")


@pytest.mark.distributed
@pytest.mark.parametrize(
    "command",
    [
        ["reference", "images", "o.npz", "--weights", "w.pth"],
        ["sheet", "realism", "images", "--reference", "images", "--out", "s.png", "--weights",
         "w.pth"],
    ],
)  # fmt: skip
def test_weights_that_one_rank_cannot_use_end_all(places: Path, command: list[str]) -> None:
    change_weights(places / "1")
    run_ranks(2, work_in_own_directory, places, command, ())
    assert all("weights" in (places / rank / "said").read_text() for rank in "01")
