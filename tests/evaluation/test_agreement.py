"""Ranks with unlike requests all stop, with one line that says in what they differ."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dist_train.runtime.world import init_world
from evaluation import __main__ as cli
from evaluation.arguments import SHARED, build_parser, parse
from evaluation.commands import COMMANDS
from evaluation.digest import digest_of
from models.safe_files import transient
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


def main_in_own_directory(place: Path, command: list[str], more: dict[int, list[str]]) -> None:
    """Run a rank's command line in a directory of its own; write down how that ended."""
    rank = init_world().rank
    with contextlib.chdir(place / str(rank)), contextlib.redirect_stderr(io.StringIO()) as said:
        code = cli.main([*command, *more.get(rank, [])])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    (place / str(rank) / "said").write_text(f"{code}\n{said.getvalue()}")


def ended(place: Path, rank: int) -> tuple[int, list[str]]:
    """Return a rank's exit code, and the lines that it printed."""
    code, *lines = (place / str(rank) / "said").read_text().splitlines()
    return int(code), lines


SAMPLE = ["sample", "model", "--seeds", "0-3", "--out", "s"]
SWEEP = ["sweep", "model", "--seeds", "0-3", "--reference", "images", "--out", "w", "--grid",
         "generator.compute_dtype=float32"]  # fmt: skip
REJECTED: dict[str, tuple[str, list[str], int, str | None, list[str]]] = {
    # what is said, the command, the rank, what it lacks, its own arguments
    "a reference": ("reference.npz does not exist", LOOK, 1, "reference.npz", []),
    "images": ("images does not exist", LOOK, 0, "images", []),
    "a model": ("model does not exist", DRAW, 1, "model", []),
    "a model to sample": ("model does not exist", SAMPLE, 1, "model", []),
    "a model to sweep": ("model does not exist", SWEEP, 1, "model", []),
    "images of a reference": ("images does not exist", ["reference", "images", "o.npz"], 1,
                              "images", []),
    "images of a sheet": ("images does not exist", ["sheet", "classes", "images", "--out",
                          "s.png"], 1, "images", []),
    "weights": ("w.pth cannot be read", [*LOOK, "--weights", "w.pth"], 1, "w.pth", []),
    "a plugin": ("gone.py", LOOK, 1, None, ["--import", "gone.py"]),
    "seeds": ("seeds", DRAW, 1, None, ["--seeds", "9-1"]),
    "an option": ("--no-such-option", DRAW, 0, None, ["--no-such-option"]),
    "a dry run": ("reference.npz does not exist", [*LOOK, "--dry-run"], 1, "reference.npz", []),
}  # fmt: skip


@pytest.mark.distributed
@pytest.mark.parametrize("name", REJECTED)
def test_what_one_rank_rejects_is_one_line_and_ends_all(places: Path, name: str) -> None:
    message, command, rank, lacks, more = REJECTED[name]
    if lacks:
        (places / str(rank) / lacks).rename(places / f"{lacks}-elsewhere")
    other = places / str(1 - rank)
    before = {path.name for path in other.iterdir()}
    run_ranks(2, main_in_own_directory, places, command, {rank: more})
    ends = [ended(places, number) for number in range(2)]
    assert [code for code, _ in ends] == [2, 2]
    (line,) = [line for _, lines in ends for line in lines]
    assert line.startswith(f"error: rank {rank}: ")
    assert message in line
    assert {path.name for path in other.iterdir()} == before | {"said"}


@pytest.mark.distributed
def test_what_all_ranks_reject_is_one_line(places: Path) -> None:
    more = ["--no-such-option"]
    run_ranks(2, main_in_own_directory, places, LOOK, dict.fromkeys(range(2), more))
    ends = [ended(places, number) for number in range(2)]
    assert [code for code, _ in ends] == [2, 2]
    (line,) = [line for _, lines in ends for line in lines]
    assert line.startswith("error: unrecognized arguments: --no-such-option")


def test_ranks_share_the_commands_that_take_them() -> None:
    required = {"sample": SAMPLE, "reference": ["reference", "a", "b"], "run": LOOK,
                "sweep": SWEEP, "sheet": ["sheet", "classes", "a", "--out", "b"]}  # fmt: skip
    assert set(required) == set(SHARED)
    for command in required.values():
        assert parse([*command, "--ranks", "2"]).ranks == 2
    with pytest.raises(SystemExit):
        build_parser().parse_args(["gc", "--ranks", "2"])


def count_readings_of_weights(place: Path, command: list[str]) -> None:
    """Count how often a rank takes the digest of the weights; others' files do not count."""
    read: list[str] = []

    def noted(path: Path) -> io.BufferedReader:
        read.append(Path(path).name)
        return open_file(path)

    open_file = transient.open_file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transient, "open_file", noted)
        work_in_own_directory(place, command, ())
    own = place / str(init_world().rank)
    assert (own / "said").read_text() == "nothing"
    assert read.count("w.pth") == 1


@pytest.mark.distributed
@pytest.mark.parametrize(
    "command", [[*LOOK, "--weights", "w.pth"], ["reference", "images", "o.npz", "--weights",
                "w.pth"]]
)  # fmt: skip
def test_weights_of_a_detector_are_hashed_once(places: Path, command: list[str]) -> None:
    command = [*command, "--out", str(places / "r.json")] if command[0] == "run" else command
    run_ranks(2, count_readings_of_weights, places, command)


def test_weights_that_change_are_hashed_again(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"a")
    first = digest_of(path)
    path.write_bytes(b"b")
    assert digest_of(path) != first
