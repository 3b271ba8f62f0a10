"""Checkpoints that are meant to do harm, each given to every reader of checkpoints.

What else is known of official files is in test_hostile.py: zip bombs, modules that are shared or
deep, settings of wrong types, flipped bits, pickles that announce more than they have; truncated
files are in test_rdm.py and test_wavediff.py, NaN weights and weights of other types there and in
tests/models/test_snapshot.py.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.__main__ import main
from models.safe_files.transient import file_sha256
from tests.fuzz.judge import Verdict, judge
from tests.fuzz.mutations import Mutation
from tests.fuzz.sandbox import Outcome, Sandbox
from tests.fuzz.subject import Result, Subject, run
from tests.fuzz.subjects.models import load, make_snapshot
from tests.models.convert import test_rdm, test_wavediff
from tests.models.convert.test_rdm import ARGUMENTS, module, official_module

__all__ = ["official_module"]  # a fixture

pytestmark = pytest.mark.usefixtures("official_module")

Make = Callable[[Path], None]
"""Writes a checkpoint."""


def convert_rdm(tree: Path) -> Result:
    return _convert(tree, "rdm-official", "--images-seen", "5")


def convert_wavediff(tree: Path) -> Result:
    settings = ("diffusion.steps=2", "space.band_order=LL_HL_LH_HH")
    return _convert(tree, "wavediff-official", "--resolution", "16", *settings)


def _convert(tree: Path, kind: str, *options: str) -> Result:
    (source,) = tree.iterdir()
    run(main, "convert", kind, source, tree.parent / "out", *options)
    return {}


READERS = {"rdm": convert_rdm, "wavediff": convert_wavediff, "snapshot": load}


def read(tmp_path: Path, name: str, make: Make, reader: str) -> tuple[Verdict, Outcome]:
    """Let a reader read a checkpoint in a process of its own; a snapshot's are its weights."""
    pristine = tmp_path / "pristine"
    if reader == "snapshot":
        name = "weights.safetensors"
        make_snapshot(pristine, 0)
        make(pristine / name)
        document = json.loads((pristine / "snapshot.json").read_text())
        del document["checksum"]
        document["weights_sha256"] = file_sha256(pristine / name)
        (pristine / "snapshot.json").write_text(json.dumps(document))
    else:
        pristine.mkdir()
        make(pristine / name)
    sandbox = Sandbox(tmp_path / "sandbox")

    def probe(tree: Path) -> Result:
        sandbox.enter()
        return READERS[reader](tree)

    subject = Subject(reader, make_snapshot, probe)
    sandbox.fill(pristine)
    before = sandbox.state()
    outcome = sandbox.run(probe)
    mutation = Mutation(name, "hostile")
    verdict = judge(subject, mutation, Outcome(), outcome, before, sandbox.state(), [name])
    return verdict, outcome


def reject(tmp_path: Path, name: str, make: Make, reader: str) -> str:
    """Expect one line that names the file, exit code 2, no trace, and bounded time and memory."""
    verdict, outcome = read(tmp_path, name, make, reader)
    assert verdict.end == "rejected", verdict.why
    assert outcome.code == 2
    assert outcome.err.startswith("error: ") or reader == "snapshot"
    assert (name if reader != "snapshot" else "weights.safetensors") in outcome.err
    assert not (tmp_path / "sandbox/out").exists()
    return outcome.err


# Valid files, and parts of them that can be replaced.


class Call:
    """Pickles as a call of a function, whose arguments, and itself, may be calls."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __call__(self) -> None:
        raise AssertionError("pickle calls only what it reads")

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def rdm_file(path: Path, **replaced: object) -> None:
    """Write an official RDM file; `replaced` are tensors of its first layer."""
    wrapper = module(
        "EDMPrecond", test_rdm.official_weights(), _init_args=(), _init_kwargs=ARGUMENTS
    )
    layer: Any = wrapper
    for part in ("model", "map_layer0"):
        layer = layer.meta["state"]["_modules"][part]
    layer.meta["state"]["_parameters"].update(replaced)
    save(path, {"ema": wrapper, "step": 5})


def wavediff_file(path: Path, **replaced: object) -> None:
    """Write an official generator; `replaced` are tensors of its latent's first layer."""
    layer = {f"module.z_transform.1.{name}": value for name, value in replaced.items()}
    save(path, OrderedDict(test_wavediff.official_weights() | layer))


def save(path: Path, content: object) -> None:
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)


BASES: dict[str, Callable[..., None]] = {
    "snapshot.pkl": rdm_file, "state.pt": rdm_file, "netG_7.pth": wavediff_file,
}  # fmt: skip
"""Valid checkpoints by the name of their file."""
SHAPES = {rdm_file: (32, 8), wavediff_file: (8, 6)}
"""Shape of the weight that is replaced."""
OWN_READERS = {rdm_file: "rdm", wavediff_file: "wavediff"}


@pytest.fixture(scope="module", autouse=True)
def _imports(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import here what readers import when they first read, once instead of in each process."""
    path = tmp_path_factory.mktemp("imports")
    make_snapshot(path / "snapshot", 0)
    load(path / "snapshot")


@pytest.mark.parametrize("name", BASES)
def test_the_valid_files_are_read(tmp_path: Path, name: str) -> None:
    make = BASES[name]
    _, outcome = read(tmp_path, name, make, OWN_READERS[make])
    assert (outcome.code, outcome.err) == (0, "")
    assert (tmp_path / "sandbox/out/snapshot.json").exists()


# Programs. The marker appears where pickle reads them.


class Foreign:
    """A class of somebody else's program."""


def programs(marker: Path) -> dict[str, object]:
    module = Call(importlib.import_module, "os")
    return {
        "os.system": Call(os.system, f"touch {marker}"),
        "exec": Call(exec, f"open({str(marker)!r}, 'w').close()"),
        "nested": Call(Call(getattr, module, "system"), f"touch {marker}"),
        "within weights": OrderedDict(weight=Call(os.mkdir, str(marker))),
        "as a state": [Foreign(), Call(os.mkdir, str(marker))],
    }


def legacy(path: Path, content: object) -> None:
    """Write PyTorch's format before its archives."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


PROGRAMS = ("os.system", "exec", "nested", "within weights", "as a state")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", ["state.pkl", "state.pt", "legacy.pth"])
@pytest.mark.parametrize("reader", READERS)
def test_programs_are_not_executed(tmp_path: Path, reader: str, name: str, program: str) -> None:
    marker = tmp_path / "marker"
    content = {"ema": programs(marker)[program], "step": 5}
    write = legacy if name == "legacy.pth" else save
    reject(tmp_path, name, lambda path: write(path, content), reader)
    assert not marker.exists()


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_programs_are_real(tmp_path: Path, program: str) -> None:
    pickle.loads(pickle.dumps(programs(tmp_path / "marker")[program]))
    assert (tmp_path / "marker").exists()


# Tensors whose description is not true.


def tensor(size: Any, stride: Any, offset: Any = 0, values: Tensor | None = None) -> Call:
    """Pickles as a view of a storage, of 4 values if none is given."""
    storage = (torch.zeros(4) if values is None else values)._typed_storage()
    rebuild = torch._utils._rebuild_tensor_v2
    return Call(rebuild, storage, offset, size, stride, False, OrderedDict())


def forged(kind: str, shape: tuple[int, int]) -> object:
    rows, columns = shape
    enough = torch.zeros(rows * columns)
    stride = (columns, 1)
    return {
        "storage too short": lambda: tensor(shape, stride),
        "offset behind its storage": lambda: tensor(shape, stride, 1, enough),
        "offset of 2^62": lambda: tensor(shape, stride, 1 << 62, enough),
        "offset of 2^70": lambda: tensor(shape, stride, 1 << 70, enough),
        "negative offset": lambda: tensor(shape, stride, -1, enough),
        "negative stride": lambda: tensor(shape, (-columns, 1), 0, enough),
        "stride of 2^40": lambda: tensor(shape, (1 << 40, 1), 0, enough),
        "stride of 2^62": lambda: tensor(shape, (1 << 62, 1), 0, enough),
        "stride of 2^70": lambda: tensor(shape, (1 << 70, 1), 0, enough),
        "strides of fewer axes": lambda: tensor(shape, (1,), 0, enough),
        "negative edge": lambda: tensor((-rows, -columns), stride, 0, enough),
        "edge of 2^40": lambda: tensor((1 << 40,), (1,)),
        "edge of 2^40, once stored": lambda: tensor((1 << 40,), (0,)),
        "edges whose product overflows": lambda: tensor((1 << 62, 8), (8, 1)),
        "empty, of 2^40": lambda: tensor((1 << 40, 0), (1, 1)),
        "edges that are text": lambda: tensor("ab", stride, 0, enough),
        "no edges": lambda: tensor(None, None, None, enough),
        "of whole numbers": lambda: tensor(shape, stride, 0, enough.long()),
        "of truth values": lambda: tensor(shape, stride, 0, enough.bool()),
        "complex": lambda: tensor(shape, stride, 0, enough.cfloat()),
        "NaN": lambda: tensor(shape, stride, 0, enough * float("nan")),
        "no tensor": lambda: Foreign,
        "on the meta device": lambda: torch.zeros(shape, device="meta"),
        "sparse": lambda: torch.zeros(shape).to_sparse(),
        "compressed sparse": lambda: torch.ones(shape).to_sparse_csr(),
        "quantized": lambda: torch.quantize_per_tensor(enough.view(shape), 0.1, 0, torch.qint8),
    }[kind]()


FORGED = (
    "storage too short", "offset behind its storage", "offset of 2^62", "offset of 2^70",
    "negative offset", "negative stride", "stride of 2^40", "stride of 2^62", "stride of 2^70",
    "strides of fewer axes", "negative edge", "edge of 2^40", "edge of 2^40, once stored",
    "edges whose product overflows", "empty, of 2^40", "edges that are text", "no edges",
    "of whole numbers", "of truth values", "complex", "NaN", "no tensor", "on the meta device",
    "sparse", "compressed sparse", "quantized",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize")
@pytest.mark.parametrize("kind", FORGED)
@pytest.mark.parametrize("name", BASES)
def test_forged_tensors_are_rejected(tmp_path: Path, name: str, kind: str) -> None:
    make = BASES[name]
    weight = forged(kind, SHAPES[make])
    reject(tmp_path, name, lambda path: make(path, weight=weight), OWN_READERS[make])


# Archives.

Members = list[tuple[str, bytes]]


def shorter(members: Members) -> Members:
    return [(name, b[: len(b) // 2] if "/data/" in name else b) for name, b in members]


def twice(end: str) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        (found,) = [member for member in members if member[0].endswith(end)]
        other = found[1] if end == "data.pkl" else bytes(len(found[1]))
        return [(found[0], other), *members]

    return change


def added(name: str) -> Callable[[Members], Members]:
    return lambda members: [*members, (name, b"x")]


def moved(start: str) -> Callable[[Members], Members]:
    return lambda members: [(start + name.partition("/")[2], b) for name, b in members]


def without(end: str) -> Callable[[Members], Members]:
    return lambda members: [member for member in members if not member[0].endswith(end)]


ARCHIVES: dict[str, Callable[[Members], Members]] = {
    "shorter storages": shorter,
    "two pickles": twice("data.pkl"),
    "two of a storage": twice("/data/0"),
    "a name with ../": added("archive/../../evil"),
    "an absolute name": added("/evil"),
    "all names with ../": moved("../../"),
    "all names absolute": moved("/evil/"),
    "no pickle": without("data.pkl"),
    "no storages": without("/data/0"),
    "nothing": lambda members: [],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("name", ["state.pt", "netG_7.pth"])
def test_forged_archives_are_rejected(tmp_path: Path, name: str, kind: str) -> None:
    make = BASES[name]

    def change(path: Path) -> None:
        make(path)
        with zipfile.ZipFile(path) as archive:
            members = [(member, archive.read(member)) for member in archive.namelist()]
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in ARCHIVES[kind](members):
                archive.writestr(member, content)

    reject(tmp_path, name, change, OWN_READERS[make])


# Pickles that take memory or time, or refer to themselves.


def cyclic_dict() -> object:
    content: dict[str, Any] = {"step": 5}
    content |= {"ema": content, "netG_dict": content, "args": content}
    return content


def cyclic_module() -> object:
    wrapper: Any = module("EDMPrecond", {}, _init_kwargs=ARGUMENTS)
    wrapper.meta["state"]["_modules"]["again"] = wrapper.meta["state"]
    return {"ema": wrapper, "step": 5}


def cyclic_list() -> object:
    content: list[Any] = []
    content.append(content)
    return {"ema": content, "netG_dict": content}


def program(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


INT_MAX = b"J\xff\xff\xff\x7f"
TEXT = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
PICKLES: dict[str, Callable[[], bytes]] = {
    "cyclic dict": lambda: pickle.dumps(cyclic_dict(), 2),
    "cyclic list": lambda: pickle.dumps(cyclic_list(), 2),
    "cyclic module": lambda: pickle.dumps(cyclic_module(), 2),
    "nested lists": lambda: program(b"]" * 50_000, b"a" * 49_999),
    "nested tuples": lambda: program(b")", b"\x85" * 50_000),
    "shared lists": lambda: program(b"]", b"q\x00h\x00\x86" * 40),
    "bytearray of 2 GB": lambda: program(b"cbuiltins\nbytearray\n", INT_MAX, b"\x85R"),
    "bytearray by its old name": lambda: program(
        b"c__builtin__\nbytearray\n", INT_MAX, b"\x85R"
    ),
    "copies of 1 MB": lambda: program(
        b"(c_codecs\nencode\nq\x01", TEXT, b"q\x02X\x06\0\0\0latin1q\x03",
        b"h\x01h\x02h\x03\x86R" * 2000, b"t",
    ),
    "tensor of 2^40": lambda: program(
        b"ctorch\nTensor\n\x8a\x06", (1 << 40).to_bytes(6, "little"), b"\x85R"
    ),
    "set of a foreign class": lambda: pickle.dumps({"ema": {Foreign}}, 2),
    "nothing": lambda: b"",
    "end": lambda: b".",
}  # fmt: skip


def bare(path: Path, pickled: bytes) -> None:
    path.write_bytes(pickled)


def archived(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {
            "data.pkl": pickled,
            "version": b"3\n",
            "byteorder": b"little",
        }.items():
            archive.writestr(f"archive/{name}", content)


def streamed(path: Path, pickled: bytes) -> None:
    """PyTorch's format before its archives: magic number, version, C types; content, keys."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
    start = b"".join(pickle.dumps(part, 2) for part in head)
    path.write_bytes(start + pickled + pickle.dumps([], 2))


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize(
    ("write", "reader"),
    [(bare, "rdm"), (bare, "wavediff"), (archived, "wavediff"), (streamed, "wavediff")],
)
def test_pickles_of_harm_are_rejected(
    tmp_path: Path, kind: str, write: Callable[[Path, bytes], None], reader: str
) -> None:
    pickled = PICKLES[kind]()
    reject(tmp_path, "state.pt", lambda path: write(path, pickled), reader)


# Files of another format, and safetensors.


def old_tar(path: Path) -> None:
    """PyTorch's first format was a tar, which its reader unpacks."""
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, str(path.parent / "evil")
            archive.addfile(link)


def safetensors(header: bytes, length: int | None = None, data: int = 16) -> Make:
    start = struct.pack("<Q", len(header) if length is None else length)
    return lambda path: bare(path, start + header + bytes(data))


def described(*tensors: dict[str, object], data: int = 16) -> Make:
    header = {f"w{i}": {"dtype": "F32", "shape": [2]} | each for i, each in enumerate(tensors)}
    return safetensors(json.dumps(header).encode(), data=data)


def offsets(*ends: int) -> dict[str, object]:
    return {"data_offsets": ends}


FILES: dict[str, Make] = {
    "text": lambda path: bare(path, b"not a checkpoint\n" * 100),
    "zeros": lambda path: bare(path, bytes(1 << 20)),
    "nothing": lambda path: bare(path, b""),
    "PK alone": lambda path: bare(path, b"PK"),
    "picture": lambda path: bare(path, b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "page": lambda path: bare(path, b"<!DOCTYPE html><html>404</html>"),
    "old tar with links": old_tar,
}

SAFETENSORS: dict[str, Make] = {
    "header of 2^40": safetensors(b"{}", 1 << 40),
    "header of 2^63": safetensors(b"{}", 1 << 63),
    "header longer than the file": safetensors(b"{}", 99),
    "header of another type": safetensors(b"[]"),
    "nested header": safetensors(b'{"a":' * 100_000),
    "header that is no text": safetensors(b"\xff" * 100),
    "overlapping offsets": described(offsets(0, 8), offsets(4, 12), data=12),
    "equal offsets": described(offsets(0, 8), offsets(0, 8), data=8),
    "reversed offsets": described(offsets(8, 0)),
    "offsets behind the file": described(offsets(0, 8), offsets(8, 1 << 40)),
    "negative offsets": described(offsets(-8, 0)),
    "offsets with a gap": described(offsets(8, 16)),
    "shape of 2^40": described({"shape": [1 << 40]} | offsets(0, 8), data=8),
    "empty shape of 2^40": described({"shape": [1 << 40, 0]} | offsets(0, 0), data=0),
    "shape that overflows": described({"shape": [1 << 62, 1 << 62]} | offsets(0, 8), data=8),
    "another dtype": described({"dtype": "F8_E8M0", "shape": [8]} | offsets(0, 8), data=8),
    "a dtype of half bytes": described({"dtype": "F4", "shape": [16]} | offsets(0, 8), data=8),
    "an unknown dtype": described({"dtype": "F1"} | offsets(0, 8), data=8),
    "a name of two lines": safetensors(
        b'{"a\\nb":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', data=8
    ),
    "nothing described": safetensors(b"{}", data=0),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", FILES)
def test_other_files_are_rejected(tmp_path: Path, kind: str, reader: str) -> None:
    reject(tmp_path, "state.pt", FILES[kind], reader)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["pristine", "sandbox"]


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_forged_safetensors_are_rejected(tmp_path: Path, kind: str) -> None:
    reject(tmp_path, "weights.safetensors", SAFETENSORS[kind], "snapshot")
