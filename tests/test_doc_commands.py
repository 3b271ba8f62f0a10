"""Every block of commands in the documents runs at debug size, or says why it does not.

A block may have a mark in the line above it: `<!-- not run: REASON -->`, or
`<!-- run by FILE -->`, a test that runs it. A document whose blocks one test runs has one such mark
with `all ` at its front. What has no mark is run here, block by block, each document in a directory
of its own with small stand-ins of what the documents name; a block whose first line is `# NAME.py`
is that file.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import relaywave
from evaluation.detectors.inception import FidInception
from tests.data_pipelines.sources import test_sources as downloads
from tests.data_sets import write_class_dirs
from tests.evaluation.test_commands import write_images
from tests.paths import ROOT
from tests.plugins import plugins_apart
from tests.slurm.project import make_run
from tests.test_docs import DOCUMENTS
from tests.test_reproduce import Features

COMMANDS = re.compile(r"^ *(relaywave|python|bash|pip|sbatch|mkdocs|module) ", re.MULTILINE)
_BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*) -->\n)?^ *```(?P<kind>\w*)\n(?P<text>.*?)^ *```$",
                    re.MULTILINE | re.DOTALL)  # fmt: skip
_FILE = re.compile(r"# ([\w-]+\.py)\n")


@dataclass(frozen=True)
class Block:
    """A block of code of a document.

    Attributes:
        mark: What is said above it, or for all of the document; "" if nothing is.
    """

    document: Path
    number: int
    kind: str
    text: str
    mark: str

    @property
    def is_commands(self) -> bool:
        """Whether it is typed into a shell; a block may not say so."""
        return self.kind in ("bash", "sh", "console") or (
            not self.kind and COMMANDS.search(self.text) is not None
        )

    @property
    def file(self) -> str | None:
        """The name of the file that it is."""
        named = _FILE.match(self.text)
        return named[1] if named else None

    def lines(self) -> Iterator[str]:
        """Yield its commands, without comments."""
        for line in re.sub(r"\\\n *", " ", self.text).splitlines():
            command = shlex.join(shlex.split(line, comments=True))
            if command and not command.startswith("cd "):
                yield command


@functools.cache
def blocks() -> tuple[Block, ...]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        general = re.search(r"^<!-- all (.*) -->$", text, re.MULTILINE)
        for number, match in enumerate(_BLOCK.finditer(text)):
            mark = match["mark"] or (general[1] if general else "")
            found.append(Block(document, number, match["kind"], match["text"], mark))
    return tuple(found)


def test_marks_have_a_reason_or_a_test() -> None:
    marks = [block.mark for block in blocks() if block.mark]
    assert marks
    for mark in marks:
        runner = re.fullmatch(r"run by (tests/[\w/]+\.py)(?:::(\w+))?", mark)
        if runner:
            test = (ROOT / runner[1]).read_text()
            assert f"def {runner[2] or 'test_'}" in test, mark
        else:
            assert re.fullmatch(r"not run: .{15,}", mark), f"{mark!r} is no mark of a block"


def test_blocks_of_commands_say_that_they_are() -> None:
    unsaid = [b for b in blocks() if b.is_commands and b.kind != "bash"]
    assert not [f"{b.document.name}: {b.text}" for b in unsaid], "write ```bash"


# What is run, at debug size

STANDS_FOR = {
    # placeholders of a synopsis
    "RECIPE": "rdm_debug_edm16", "RUN": "runs/edm64", "RUN1": "runs/edm64", "RUN2": "runs/edm",
    "OUT": "out", "DATA": "cats", "TRAIN": "cats", "IMAGES": "large", "N": "1",
    # recipes of published runs, where they would be trained or timed
    "rdm_imagenet64": "rdm_debug_edm16", "rdm_imagenet256": "rdm_debug_relay64",
    "rdm_imagenet256_guided": "rdm_debug_relay64", "wavediff_celebahq256": "wavediff_debug",
    "wavediff_cifar10": "wavediff_debug", "ddgan_cifar10": "ddgan_debug",
}  # fmt: skip
"""Words of the documents -> what is taken instead, but for jobs, which are only submitted dry."""
SHORT = {"--ranks": "1", "--workers": "1", "--seeds": "0-3"}
"""Options -> their values here."""
ELSEWHERE = {
    "/project/": "", "/tmp/": "", "pt_inception-2015-12-05-6726825d.pth": "inception.safetensors",
}  # fmt: skip
"""Directories of the documents, which are the test's own instead, and weights, which are random."""
FEW_IMAGES = [
    "total_images=32", "checkpoint.every_images=32", "checkpoint.snapshot_every_images=32",
    "logging.every_images=32", "logging.grid_seeds=0",
]  # fmt: skip


def at_debug_size(line: str) -> list[str]:
    """Return the arguments of a command of a document, made small."""
    words = shlex.split(line)[1:]
    for option, value in SHORT.items():
        if option in words:
            words[words.index(option) + 1] = value
    for theirs, ours in ELSEWHERE.items():
        words = [word.replace(theirs, ours) for word in words]
    if words[0] not in ("slurm", "paper"):
        words = [STANDS_FOR.get(word, word) for word in words]
    added = _added(words)
    if "--dry-run" in added and "--run-dir" in words:  # some are there, as other documents need
        words[words.index("--run-dir") + 1] += "-new"
    return words + added


def _added(words: list[str]) -> list[str]:
    """Return the arguments that make a command small, or keep it from submitting anything."""
    if {"--dry-run", "--print-config"} & {*words}:
        return []
    match words:
        case ["data", "pack", "photographs", *_]:
            return ["--limit", "64"]
        case ["data", "bench", *_]:
            return ["--seconds", "0.1", "--workers", "1"]
        case ["train", "quickstart_edm16" | "quickstart_relay64", *_]:
            return FEW_IMAGES
        case ["train", name, *_] if "_debug" in name:
            return ["--dry-run"]
        case ["slurm", "train", *_]:
            return ["--dry-run", "--data-on-nodes"]
        case ["slurm", "pack" | "eval" | "reference", *_] | ["paper", "run", *_]:
            return ["--dry-run"]
        case ["eval", "sweep", *_]:
            return ["--seeds", "0-3"]
        case ["eval", "time", *_]:
            return ["--repeats", "1", "--warm-up", "0", "--batch-size", "1"]
    return []


def write_downloads(directory: Path) -> None:
    """Write tiny archives of the layouts and names that the documents pack, and images."""
    tars = {
        f"{wnid}.tar": downloads.tar_bytes(files)
        for wnid, files in downloads.imagenet_files().items()
    }
    downloads.write_tar(directory / "ILSVRC2012_img_train.tar", tars)
    downloads.write_cifar_python(directory)
    downloads.write_tar(directory / "stl10_binary.tar.gz", downloads.stl_files())
    pictures = {f"{n:040x}": downloads.webp(n) for n in range(3)}
    lmdb = downloads.write_lmdb(directory / "church/church_outdoor_train_lmdb", pictures)
    shutil.make_archive(str(directory / "church_outdoor_train_lmdb"), "zip", lmdb.parent, lmdb.name)
    write_class_dirs(directory / "cats", classes=2, per_class=6)
    shutil.make_archive(str(directory / "pictures"), "zip", directory / "cats")
    write_images(directory / "large", 2, size=256)
    shutil.make_archive(str(directory / "CelebA-HQ"), "zip", directory / "large")


def write_weights(directory: Path) -> None:
    """Write random weights of detectors, and name them for all commands."""
    weights = {k: v for k, v in FidInception().state_dict().items() if v.is_floating_point()}
    save_file(weights, directory / "inception.safetensors")
    torch.jit.script(Features()).save(directory / "vgg16.pt")
    (directory / "weights.toml").write_text(
        'inception = "inception.safetensors"\nvgg16 = "vgg16.pt"\n'
    )


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the documents take as given."""
    directory = tmp_path_factory.mktemp("stand_ins")
    write_downloads(directory)
    write_weights(directory)
    (directory / "my_recipes.py").write_text('"""A plugin that adds nothing."""\n')
    runs = {"edm64": "rdm_debug_edm16", "edm": "rdm_debug_edm16", "relay256": "rdm_debug_relay64",
            "celebahq256": "wavediff_debug", "cifar10": "wavediff_debug"}  # fmt: skip
    for name, recipe in runs.items():
        make_run(directory / "runs" / name, recipe=recipe)
    return directory


EXECUTED = [
    pytest.param(document, id=str(document.relative_to(ROOT)))
    for document in DOCUMENTS
    if any(b.is_commands and not b.mark and b.document == document for b in blocks())
]


@pytest.mark.parametrize("document", EXECUTED)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_commands_run(
    document: Path,
    stand_ins: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(stand_ins, tmp_path, dirs_exist_ok=True, copy_function=os.link)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RELAYWAVE_WEIGHTS", str(tmp_path / "weights.toml"))
    for block in (b for b in blocks() if b.document == document and not b.mark):
        if block.file:
            Path(block.file).unlink(missing_ok=True)
            Path(block.file).write_text(block.text)
        for line in block.lines() if block.is_commands else ():
            line, _, into = line.partition(" '>' ")
            assert line.startswith("relaywave "), f"mark it, or run it here: {line}"
            words = at_debug_size(line)
            with plugins_apart():
                code = relaywave.main(words)
            shown = capsys.readouterr()
            assert code == 0, f"{line}\nas {shlex.join(words)}\n{shown.err}"
            if into:
                Path(into).write_text(shown.out)
