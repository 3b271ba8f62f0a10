"""Samples, features and metrics do not depend on the number of ranks, and survive kills."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data_pipelines.packed.check import check
from dist_train.runtime.world import init_world
from evaluation import __main__ as cli
from evaluation.arguments import parse
from evaluation.features.batches import BatchStore
from evaluation.image_sets.image_set import EncodedImages, PackedImages, open_images
from evaluation.metrics.precision_recall import manifold_scores
from evaluation.samples.generate import GeneratedImages, SampleSpec
from evaluation.samples.sample_dir import SampleFiles
from evaluation.samples.sample_shards import SampleShards
from models.snapshot import Snapshot, read_snapshot, write_snapshot
from models.wavediff.config import WaveDiffConfig
from models.wavediff.generator import Generator
from models.wavediff.generator_config import GeneratorConfig
from tests.paths import ROOT
from tests.ranks import run_ranks

SEEDS = "0-18"
BATCH = "4"


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained WaveDiff generator of 16x16 images."""
    return write_generator(tmp_path_factory.mktemp("run") / "snapshot", 0)


def write_generator(path: Path, number: int) -> Path:
    """Write a snapshot; those of other numbers have other weights."""
    torch.manual_seed(number)
    generator = GeneratorConfig(
        base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1, embedding_dim=16
    )
    config = WaveDiffConfig(resolution=16, generator=generator)
    objective = config.build()
    name = objective.sampled_network
    weights = objective.build_networks()[name].state_dict()
    write_snapshot(
        path,
        weights,
        objective=config,
        network=name,
        images_seen=number,
        ema="none",
        provenance={},
    )
    return path


def call(arguments: list[str]) -> None:
    assert cli.main(arguments) == 0


def sample_arguments(snapshot: Path, out: Path) -> list[str]:
    return ["sample", str(snapshot), "--out", str(out), "--seeds", SEEDS, "--batch-size", BATCH]


def files_of(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*.png")}


@pytest.mark.distributed
def test_samples_are_the_same_files_on_four_ranks(snapshot: Path, tmp_path: Path) -> None:
    call(sample_arguments(snapshot, tmp_path / "one"))
    run_ranks(4, call, sample_arguments(snapshot, tmp_path / "many"))
    expected = files_of(tmp_path / "one")
    assert set(expected) == {f"000000/{seed:06d}.png" for seed in range(19)}
    assert files_of(tmp_path / "many") == expected


@pytest.mark.parametrize("shards", [[], ["--shard-images", "4"]])
def test_samples_are_drawn_while_others_are_written(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: list[str]
) -> None:
    """The first batch is not written before the second one was drawn: only threads can do that."""
    drawn = threading.Semaphore(0)
    draw = GeneratedImages.draw

    def counted(self: GeneratedImages, indices: Sequence[int]) -> Tensor:
        drawn.release()
        return draw(self, indices)

    def waiting(write: Callable[..., None]) -> Callable[..., None]:
        def call(self: SampleFiles | SampleShards, batch: range, images: Tensor) -> None:
            if batch.start == 0:
                assert drawn.acquire(timeout=60)  # the first batch itself
                assert drawn.acquire(timeout=60)
            write(self, batch, images)

        return call

    call(sample_arguments(snapshot, tmp_path / "expected") + shards)
    monkeypatch.setattr(GeneratedImages, "draw", counted)
    for kind in (SampleFiles, SampleShards):
        monkeypatch.setattr(kind, "write", waiting(kind.write))
    call(sample_arguments(snapshot, tmp_path / "out") + shards)
    assert images_in(tmp_path / "out") == images_in(tmp_path / "expected")


def images_in(directory: Path) -> dict[str, bytes]:
    """Return the bytes of images and shards."""
    files = [*directory.rglob("*.png"), *directory.rglob("*.tar")]
    assert files
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def sample_while_a_snapshot_is_written(run: Path, command: list[str]) -> None:
    """Run a command; the ranks but the first look at the run after its next snapshot."""
    from dist_train.runtime.world import init_world
    from evaluation.commands import COMMANDS

    world = init_world()
    shown, hidden = run / "snapshots" / f"{501:012d}", run / "hidden"
    if world.rank == 0:
        shown.rename(hidden)
    world.barrier()
    work = COMMANDS[command[0]](parse(command)) if world.rank == 0 else None
    world.barrier()
    if world.rank == 0:
        hidden.rename(shown)
    world.barrier()
    work = work or COMMANDS[command[0]](parse(command))
    assert work is not None
    work(world)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["sample", "run"])
def test_ranks_draw_from_one_model_of_a_run(tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    for number in (500, 501):
        write_generator(run / "snapshots" / f"{number:012d}", number)
    images = tmp_path / "images"
    options = ["--seeds", "0-7", "--batch-size", "2"]
    command = ["sample", str(run), "--out", str(images), *options]
    if kind == "run":
        call(["sample", str(run), "--out", str(tmp_path / "others"), *options])
        command = ["run", str(run), "--reference", str(tmp_path / "others"), *options]
        command += ["--metrics", "fd:block4", "--keep-images", str(images)]
    run_ranks(2, sample_while_a_snapshot_is_written, run, command)
    first = run / "snapshots" / f"{500:012d}"
    call(["sample", str(first), "--out", str(tmp_path / "expected"), *options])
    assert files_of(images) == files_of(tmp_path / "expected")
    if kind == "run":
        assert [path.name[:12] for path in run.glob("evaluation/*.json")] == [f"{500:012d}"]


@pytest.mark.distributed
def test_results_are_the_same_on_any_number_of_ranks(snapshot: Path, tmp_path: Path) -> None:
    call(sample_arguments(snapshot, tmp_path / "images"))
    results = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        reference = ["reference", str(tmp_path / "images"), str(out / "ref.npz")]
        run = ["run", str(snapshot), "--seeds", "50-80", "--batch-size", BATCH]
        run += ["--reference", str(out / "ref.npz"), "--out", str(out / "result.json")]
        run += ["--metrics", "fd:block4,pr:block10,kid:block4,kid_subsets:block4"]
        run += ["--bootstrap", "4"]
        for command in (reference, run):
            if ranks == 1:
                call(command)
            else:
                run_ranks(ranks, call, command)
        results.append(json.loads((out / "result.json").read_text()))
        with np.load(out / "ref.npz") as file:
            results[-1]["mu"] = file["mu"].tolist()
    one, two = results
    assert one["mu"] == two["mu"]
    assert one["images"]["digest"] == two["images"]["digest"]
    for name, metric in one["metrics"].items():
        rtol = 1e-12 if name.startswith("kid") else 0  # sums of ranks' parts differ in order
        for value, other in zip(
            metric["values"].values(), two["metrics"][name]["values"].values(), strict=True
        ):
            np.testing.assert_allclose(value, other, rtol=rtol)
        assert metric.get("interval95", 0) == pytest.approx(
            two["metrics"][name].get("interval95", 0), rel=1e-9
        )


def save_scores(gen: np.ndarray, ref: np.ndarray, path: Path) -> None:
    world = init_world()
    scores = manifold_scores(gen, ref, 3, world)
    if world.rank == 0:
        path.write_text(repr(scores))


@pytest.mark.distributed
def test_precision_recall_shares_blocks_over_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    gen, ref = (generator.normal(size=(n, 6)).astype(np.float32) for n in (4500, 2100))
    run_ranks(2, save_scores, gen, ref, tmp_path / "scores")
    assert (tmp_path / "scores").read_text() == repr(manifold_scores(gen, ref, 3))


@pytest.mark.distributed
def test_shards_are_the_same_bytes_on_four_ranks_and_a_packed_set(
    snapshot: Path, tmp_path: Path
) -> None:
    shards = ["--shard-images", "9"]  # two batches of four
    call(sample_arguments(snapshot, tmp_path / "files"))
    call(sample_arguments(snapshot, tmp_path / "one") + shards)
    run_ranks(4, call, sample_arguments(snapshot, tmp_path / "many") + shards)
    names = ["index.npy", *(f"shards/{number:06d}.tar" for number in range(3))]
    for name in names:
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert not (tmp_path / "many" / ".batches").exists()
    assert check(tmp_path / "many").problems == []
    packed, files = open_images(tmp_path / "many"), open_images(tmp_path / "files")
    assert isinstance(packed, PackedImages)
    assert len(packed) == 19
    assert torch.equal(packed.batch(range(19)), files.batch(range(19)))


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["shards", "run"])
def test_what_is_finished_survives_kill_9(snapshot: Path, tmp_path: Path, kind: str) -> None:
    """Both ranks are killed over and over; only batches that were not written are drawn again."""

    def command(out: Path) -> list[str]:
        if kind == "shards":
            return [*sample_arguments(snapshot, out / "samples"), "--shard-images", "8"]
        run = ["run", str(snapshot), "--seeds", SEEDS, "--batch-size", BATCH]
        reference = str(tmp_path / "reference")
        return [*run, "--reference", reference, "--out", str(out / "r.json"), "--metrics", "fd"]

    call(["sample", str(snapshot), "--out", str(tmp_path / "reference"), "--seeds", "90-99"])
    call(command(tmp_path / "uninterrupted"))
    kills = 0
    for turn in range(9):
        try:
            run_ranks(2, call_and_die, command(tmp_path / "killed"), tmp_path / f"log{turn}")
        except AssertionError as error:
            problem = str(error)
            assert "it is gone" in problem or "worker crashing" in problem
            kills += 1
        else:
            break
    assert kills >= 2
    written: set[str] = set()
    drawn: Counter[str] = Counter()
    for log in sorted(tmp_path.glob("log*")):
        lines = [line.split() for line in log.read_text().splitlines()]
        assert written.isdisjoint(start for what, start in lines if what == "draw")
        written |= {start for what, start in lines if what == "written"}
        drawn.update(start for what, start in lines if what == "draw")
    # a rank may be ended when it has written a batch and not noted that: it is not drawn again
    written |= {start for start, times in drawn.items() if times == 1}
    assert written == {str(start) for start in range(0, 19, 4)}
    if kind == "run":
        results = [
            json.loads((tmp_path / f / "r.json").read_text()) for f in ("uninterrupted", "killed")
        ]
        values = [result["metrics"]["fd_effnet_lite0_block4"]["values"] for result in results]
        assert values[0] == values[1]
    else:
        ignored = {"samples.json", ".lock", "manifest.json"}
        expected, found = (contents(tmp_path / f / "samples") for f in ("uninterrupted", "killed"))
        assert {n: c for n, c in found.items() if n not in ignored} == {
            n: c for n, c in expected.items() if n not in ignored
        }


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def call_and_die(arguments: list[str], log: Path) -> None:
    """Call a command, log what it draws and writes, and kill the process at the second batch.

    That is: when one batch is written, a second one is about to be, and others are being drawn.
    """
    writes, is_written = itertools.count(), threading.Event()

    def note(what: str, start: int) -> None:
        with open(log, "a") as file:
            file.write(f"{what} {start}\n")

    draw = GeneratedImages.draw

    def draw_and_note(self: GeneratedImages, indices: range) -> torch.Tensor:
        note("draw", indices[0])
        return draw(self, indices)

    def noted(write: Callable[..., None]) -> Callable[..., None]:
        def write_or_die(self: object, batch: range | int, *rest: object) -> None:
            if next(writes) == 1:
                assert is_written.wait(60)
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, batch, *rest)
            note("written", batch if isinstance(batch, int) else batch.start)
            is_written.set()

        return write_or_die

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneratedImages, "draw", draw_and_note)
        for store in (SampleFiles, SampleShards, BatchStore):
            patch.setattr(store, "write", noted(store.write))
        call(arguments)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["run", "images", "--reference", "images", "--out", "o.json"], "2.png cannot be decoded"),
        (["reference", "images", "o.npz", "--taps", "pool"], "has the taps block4"),
    ],
)
def test_an_error_is_one_line_however_many_ranks(
    tmp_path: Path, arguments: list[str], problem: str
) -> None:
    (tmp_path / "images").mkdir()
    for i in range(4):
        image = Image.effect_noise((32, 32), 40 + i)
        image.save(tmp_path / "images" / f"{i}.png")
    damaged = tmp_path / "images" / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    command = [sys.executable, "-m", "evaluation", *arguments, "--ranks", "2", "--batch-size", "1"]
    paths = {"PYTHONPATH": str(ROOT), "RELAYWAVE_CACHE": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **paths}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert problem in done.stderr


class KilledError(BaseException):  # as a kill: no handler sees it
    pass


def test_a_killed_generation_resumes_without_making_an_image_twice(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(sample_arguments(snapshot, tmp_path / "uninterrupted"))
    drawn: list[int] = []
    draw = GeneratedImages.draw

    def counted(self: GeneratedImages, indices: range) -> torch.Tensor:
        if len(drawn) == 8:
            raise KilledError
        drawn.extend(indices)
        return draw(self, indices)

    monkeypatch.setattr(GeneratedImages, "draw", counted)
    out = tmp_path / "resumed"
    with pytest.raises(KilledError):
        cli.main(sample_arguments(snapshot, out))
    with pytest.raises(ValueError, match="being written by another job"):
        open_images(out)
    drawn.append(-1)  # no further kill
    call(sample_arguments(snapshot, out))
    assert sorted(drawn) == [-1, *range(19)]
    assert files_of(out) == files_of(tmp_path / "uninterrupted")
    assert isinstance(open_images(out), EncodedImages)


def test_more_seeds_extend_a_directory_and_another_model_is_rejected(
    snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "samples"
    call(sample_arguments(snapshot, out))
    before = files_of(out)
    call(["sample", str(snapshot), "--out", str(out), "--seeds", "0-23", "--batch-size", BATCH])
    assert len(files_of(out)) == 24
    assert {name: files_of(out)[name] for name in before} == before
    arguments = sample_arguments(snapshot, out)
    assert cli.main([*arguments, "--quantisation", "adm"]) == 2
    assert "samples of another model or with other settings" in capsys.readouterr().err


def test_results_record_the_precision_that_stored_samples_were_drawn_with(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    samples, out = tmp_path / "samples", tmp_path / "result.json"
    call(sample_arguments(snapshot, samples))
    manifest = json.loads((samples / "samples.json").read_text())
    assert manifest["tf32"].keys() == {"convolutions", "matrix_products"}
    manifest["tf32"]["convolutions"] = "as drawn"
    del manifest["checksum"]
    (samples / "samples.json").write_text(json.dumps(manifest))
    call(["run", str(samples), "--reference", str(samples), "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["tf32"]["convolutions"] == "as drawn"
    objective = result["samples"]["models"][0]["objective"]
    assert objective["generator"]["compute_dtype"] == "float32"


def test_a_directory_that_an_older_version_began_is_continued(
    snapshot: Path, tmp_path: Path
) -> None:
    """Settings of the objective have new names since; the samples are the same."""
    out = tmp_path / "samples"
    call(sample_arguments(snapshot, out))
    manifest = json.loads((out / "samples.json").read_text())
    generator = manifest["identity"]["models"][0]["objective"]["generator"]
    generator["dtype"] = generator.pop("compute_dtype")
    del manifest["checksum"]  # older versions wrote none
    (out / "samples.json").write_text(json.dumps(manifest))
    call(["sample", str(snapshot), "--out", str(out), "--seeds", "0-23", "--batch-size", BATCH])
    assert len(files_of(out)) == 24


def test_a_batch_of_another_size_changes_isolated_levels_at_most(snapshot: Path) -> None:
    images = []
    for batch_size in (3, 7):
        spec = SampleSpec(tuple(range(7)), batch_size=batch_size)
        generated = GeneratedImages([load(snapshot)], spec)
        batches = [range(i, min(i + batch_size, 7)) for i in range(0, 7, batch_size)]
        images.append(torch.cat([generated.batch(batch) for batch in batches]).int())
    difference = (images[0] - images[1]).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


def load(path: Path) -> Snapshot:
    return read_snapshot(path)


def _of_run(snapshot: Path, out: Path, tf32: bool | None) -> Path:
    """Write a snapshot again as a run with this setting would have."""
    old = read_snapshot(snapshot)
    compute = {} if tf32 is None else {"compute": {"tf32": tf32}}
    write_snapshot(
        out, old.load_weights(), objective=old.objective, network=old.network, images_seen=0,
        ema="none", provenance=compute,
    )  # fmt: skip
    return out


@pytest.mark.parametrize("tf32", [True, False, None])
def test_samples_are_drawn_in_the_tf32_mode_of_the_run(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tf32: bool | None
) -> None:
    flags: list[tuple[bool, bool]] = []
    forward = Generator.forward

    def recording(self: Generator, *args: Any) -> Tensor:
        flags.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return forward(self, *args)

    monkeypatch.setattr(Generator, "forward", recording)
    before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    expected = before if tf32 is None else (tf32, tf32)
    ours, images = _of_run(snapshot, tmp_path / "s", tf32), tmp_path / "images"
    call(["sample", str(ours), "--out", str(images), "--seeds", "0-3", "--batch-size", "4"])
    assert set(flags) == {expected}
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
    recorded = dict(zip(("convolutions", "matrix_products"), expected, strict=True))
    assert json.loads((images / "samples.json").read_text())["tf32"] == recorded
    out = tmp_path / "result.json"
    call(
        ["run", str(ours), "--reference", str(images), "--out", str(out), "--seeds", "0-3",
         "--metrics", "fd:block4"]
    )  # fmt: skip
    assert json.loads(out.read_text())["tf32"] == recorded
    assert set(flags) == {expected}


def test_stages_that_differ_in_tf32_are_recorded_each(snapshot: Path, tmp_path: Path) -> None:
    stages = [read_snapshot(_of_run(snapshot, tmp_path / str(on), on)) for on in (True, False)]
    recorded = GeneratedImages(stages, SampleSpec((0,))).tf32
    assert [stage["convolutions"] for stage in recorded["stages"]] == [True, False]
    assert recorded["convolutions"] is False
