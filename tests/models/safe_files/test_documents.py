from __future__ import annotations

import errno
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from models.safe_files.documents import DocumentError, Format, read_object
from models.safe_files.transient import file_sha256
from tests.flaky_files import make_flaky


@dataclass(frozen=True)
class Part:
    IGNORES_UNKNOWN: ClassVar[bool] = True
    name: str
    size: int


@dataclass(frozen=True)
class Thing:
    IGNORES_UNKNOWN: ClassVar[bool] = True
    parts: tuple[Part, ...]
    table: dict[str, int]
    scale: float
    note: str | None = None
    rows: list[int] | None = None

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale={self.scale} must be positive")


THING = Thing((Part("a", 1), Part("b", 2)), {"x": 3}, 0.5)
SEALED = Format(schema=Thing, version=2, needs_checksum=True, remedy="make it again")
OPEN = Format(schema=Thing)


def rejected(format_: Format[Thing], path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DocumentError) as caught:
        format_.read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_documents_come_back(tmp_path: Path) -> None:
    for format_ in (SEALED, OPEN):
        format_.write(tmp_path / "thing.json", asdict(THING))
        assert format_.read(tmp_path / "thing.json") == THING
        newer = asdict(THING) | {"colour": "red", "parts": [{**asdict(THING.parts[0]), "age": 1}]}
        format_.write(tmp_path / "thing.json", newer)
        assert format_.read(tmp_path / "thing.json").parts == THING.parts[:1]
    (tmp_path / "thing.json").write_text(json.dumps(asdict(THING)))
    assert OPEN.read(tmp_path / "thing.json") == THING, "older ones have no checksum"
    with pytest.raises(FileNotFoundError):
        OPEN.read(tmp_path / "nothing.json")


JSON_VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**400, "", "x", "\ud800\n", [], [1], [[]], {}, {"a": 1},
    {"type": "Part"}, {"name": 3, "size": "x"}, [{"name": "a", "size": 1}, None],
]  # fmt: skip


@pytest.mark.parametrize("value", JSON_VALUES, ids=lambda value: ascii(value)[:20])
def test_wrong_types_are_one_line(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "thing.json"
    if not isinstance(value, dict):
        assert "expected a JSON object" in rejected(OPEN, path, json.dumps(value).encode())
    right = {"note": ("", "x", "\ud800\n", None), "rows": ([], [1], None), "table": ({}, {"a": 1})}
    right["parts"], right["scale"] = ([],), (1.5,)
    for field in asdict(THING):
        document = asdict(THING) | {field: value}
        if any(value == fits and type(value) is type(fits) for fits in right[field]):
            path.write_bytes(json.dumps(document).encode())
            assert OPEN.read(path)
        else:
            assert "does not parse" in rejected(OPEN, path, json.dumps(document).encode())


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"\x00" * 100, b"[" * 10**5, b'{"a":' * 10**5, b"nul", b'{"a": 1}x',
     b"9" * 5000, b'{"a": NaN', "{\u2028".encode()],
    ids=lambda content: ascii(content[:8]),
)  # fmt: skip
def test_what_is_no_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    assert "is not JSON" in rejected(OPEN, tmp_path / "thing.json", content)


@pytest.mark.parametrize("name", ["parts", "table", "scale"])
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    document = {key: value for key, value in asdict(THING).items() if key != name}
    said = rejected(OPEN, tmp_path / "thing.json", json.dumps(document).encode())
    assert f"the field it.{name} is missing" in said
    within = asdict(THING) | {"parts": [{"name": "a", "size": 1}, {"size": 1}]}
    said = rejected(OPEN, tmp_path / "thing.json", json.dumps(within).encode())
    assert "the field it.parts[1].name is missing" in said


@pytest.mark.parametrize("pair", ['"scale": 2, "scale": 3', '"table": {"a": 1, "b": 2, "a": 1}'])
def test_a_key_given_twice_is_named(tmp_path: Path, pair: str) -> None:
    twice = "a" if "table" in pair else "scale"
    said = rejected(OPEN, tmp_path / "thing.json", f"{{{pair}}}".encode())
    assert f"the key {twice!r} is given twice" in said


def test_sizes_and_directories(tmp_path: Path) -> None:
    (tmp_path / "large.json").write_bytes(b" " * 101)
    with pytest.raises(DocumentError, match="101 bytes, more than any document of ours"):
        read_object(tmp_path / "large.json", max_bytes=100)
    with pytest.raises(DocumentError, match="cannot be read: Is a directory"):
        read_object(tmp_path)


def test_documents_that_cannot_be_read_for_a_moment_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "thing.json"
    OPEN.write(path, asdict(THING))
    digest = file_sha256(path)
    for number in (errno.EIO, errno.ESTALE):
        with monkeypatch.context() as patch:
            failed = make_flaky(patch, lambda p: p.name == "thing.json", 3, number)
            assert OPEN.read(path) == THING
            failed.clear()
            assert file_sha256(path) == digest
            assert failed == {path: 3}
    with monkeypatch.context() as patch:
        make_flaky(patch, lambda p: p.name == "thing.json", 4)
        with pytest.raises(DocumentError, match="cannot be read: Input/output error"):
            OPEN.read(path)


def test_versions_and_checksums(tmp_path: Path) -> None:
    path = tmp_path / "thing.json"
    SEALED.write(path, asdict(THING))
    document = json.loads(path.read_bytes())
    for version in (None, 1, 3, True, "2", [2], {}):
        message = rejected(
            SEALED, path, json.dumps(document | {"format_version": version}).encode()
        )
        assert "this relaywave reads 2; use the relaywave that wrote it" in message
    changes = [{"scale": 0.25}, {"checksum": "x"}, {"checksum": None}, {"new": 1}]
    for change in changes:
        message = rejected(SEALED, path, json.dumps(document | change).encode())
        assert "its checksum does not match); make it again" in message
    del document["checksum"]
    assert "checksum" in rejected(SEALED, path, json.dumps(document).encode())


def test_flipped_bits_never_change_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "thing.json"
    rng = random.Random(0)
    SEALED.write(path, asdict(THING))
    content = path.read_bytes()
    caught = 0
    for _ in range(400):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            read = SEALED.read(path)
        except DocumentError:
            caught += 1
        else:
            assert read == THING
    assert caught > 300
