"""What may happen to a file: damage, exchange, and changes by hand or by whoever means harm.

Each mutation is a function of a random generator and the file alone, so that (subject, seed) says
everything.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.safe_files.documents import checksum


@dataclass(frozen=True)
class Mutation:
    """What was done.

    Attributes:
        file: The file, relative to the tree.
        what: What was done to it.
        forged: Whether a checksum was made to match, so that the file is a valid, other one: then
            another result is right, but no traceback.
        keeps_content: Whether nothing of what the file says has changed.
    """

    file: str
    what: str
    forged: bool = False
    keeps_content: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def mutate(rng: random.Random, files: list[str], tree: Path, other: Path, aside: Path) -> Mutation:
    """Do something to one of the files of a tree.

    Args:
        rng: Decides what.
        files: Files that may be mutated, relative to the tree.
        tree: The tree.
        other: Another valid tree of its kind, to exchange files with.
        aside: A directory that links may lead to.
    """
    name = rng.choice(files)
    path = tree / name
    kind = rng.choices(["content", "exchange", "place"], [12, 2, 3])[0]
    if kind == "exchange":
        return _exchange(rng, name, files, tree, other)
    if kind == "place":
        return Mutation(name, *rng.choice(PLACES)(rng, path, aside))
    content = path.read_bytes()
    document = _parse(content)
    if document is not None and rng.random() < 0.7:
        text, what, forged = _edit_document(rng, document, content)
        path.write_bytes(text)
        return Mutation(name, what, forged)
    if _is_safetensors(content) and rng.random() < 0.4:
        path.write_bytes(_edit_safetensors(rng, content))
        return Mutation(name, "the header of safetensors edited")
    if _is_text(content) and rng.random() < 0.6:
        text, forged = _edit_lines(rng, content)
        path.write_bytes(text)
        return Mutation(name, "lines edited", forged)
    edit = rng.choice(EDITS)
    path.write_bytes(edit(rng, content))
    return Mutation(name, f"bytes: {edit.__name__.lstrip('_')}")


# Bytes.


def _flip_bits(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 10, 100])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_bytes(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    start, length = rng.randrange(len(content) + 1), rng.choice([1, 2, 4, 8, 64, 512])
    fill = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length), b"9" * length])
    changed[start : start + length] = fill[: max(len(content) - start, 0)]
    return bytes(changed)


def _truncate(rng: random.Random, content: bytes) -> bytes:
    near_end = rng.randrange(min(600, len(content)) + 1)
    return content[: rng.choice([rng.randrange(len(content) + 1), len(content) - near_end])]


def _insert(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    length = rng.choice([1, 8, 512, 5000])
    block = rng.choice([bytes(length), rng.randbytes(length), content[start : start + length]])
    return content[:start] + block + content[start:]


def _repeat(rng: random.Random, content: bytes) -> bytes:
    return content * 2


def _remove(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.choice([1, 8, 512, 5000]) :]


def _append(rng: random.Random, content: bytes) -> bytes:
    return content + rng.choice([b"\0", b"\n", b"x" * 513, rng.randbytes(2000), bytes(20_000)])


def _empty(rng: random.Random, content: bytes) -> bytes:
    return b""


def _other_content(rng: random.Random, content: bytes) -> bytes:
    return rng.choice(
        [b"\n", b"\0", b"{}", b"[]", b"null", b"0", b'"x"', b"[" * 100_000,
         b"PK\x05\x06" + bytes(18),
         b"\x80\x04.", b"\x93NUMPY\x01\x00", b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}",
         rng.randbytes(300),
         b'{"a": ' * 5000 + b"1" + b"}" * 5000, b"\x1f\x8b\x08" + bytes(20), b"9" * 10_000]
    )  # fmt: skip


EDITS = (
    _flip_bits, _flip_bits, _flip_bits, _set_bytes, _set_bytes, _truncate, _truncate, _insert,
    _repeat, _remove, _append, _empty, _other_content,
)  # fmt: skip


# Text.


def _is_text(content: bytes) -> bool:
    return bool(content) and all(32 <= byte < 127 or byte in b"\t\n\r" for byte in content[:4096])


def _edit_lines(rng: random.Random, content: bytes) -> tuple[bytes, bool]:
    """Return changed text, and whether a checksum in it was made to match."""
    forged = False
    lines = content.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    line = lines[number]
    document = _parse(line)
    action = rng.randrange(7)
    if document is not None and action < 4:
        text, _, forged = _edit_document(rng, document, line)
        lines[number] = text.replace(b"\n", b" ") + b"\n"
    elif action == 0:
        lines[number] = b""
    elif action == 1:
        lines[number] = line * 2
    elif action == 2:
        place = rng.randrange(len(line))
        lines[number] = (
            line[:place] + rng.choice([b"", b"9", b"\xff", b"-", b'"']) + line[place + 1 :]
        )
    elif action == 3:
        lines[number] = line[: rng.randrange(len(line))]
    elif action == 4:
        rng.shuffle(lines)
    elif action == 5:
        name, equals, _ = line.partition(b"=")
        odd = json.dumps(rng.choice(ODD[:-2]), ensure_ascii=False).encode("utf-8", "replace")
        lines[number] = name + equals + b" " + odd + b"\n"
    else:
        lines[number] = rng.choice([b"\0" * 40 + b"\n", b"unknown = 3\n", b"x" * 100_000 + b"\n"])
    return b"".join(lines), forged


# JSON.

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, -(10**18), 0.5, -1e300, float("nan"),
    float("inf"), "", "x", "../../x", "/etc/passwd", "a\nb", "\0", "\udce9", "é" * 300, "9" * 5000,
    [], {}, [1], [None], {"a": 1}, [[]], "NESTED LIST", "NESTED OBJECT",
)  # fmt: skip


def _parse(content: bytes) -> Any:
    """Return the JSON object or array of a file, None if it holds none."""
    if content[:1] not in (b"{", b"["):
        return None
    try:
        return json.loads(content)
    except ValueError:
        return None


def _edit_document(rng: random.Random, document: Any, content: bytes) -> tuple[bytes, str, bool]:
    """Return a changed document, what was changed, and whether its checksum was made to match."""
    document = json.loads(content)
    forged = isinstance(document, dict) and "checksum" in document and rng.random() < 0.5
    if forged:
        del document["checksum"]
    what = _edit_value(rng, document)
    if forged:
        document["checksum"] = checksum(document)
    text = json.dumps(document, indent=rng.choice([None, 1]))
    for mark, opening, closing in (("LIST", "[", "]"), ("OBJECT", '{"a": ', "}")):
        text = text.replace(f'"NESTED {mark}"', opening * 20_000 + "1" + closing * 20_000)
    if rng.random() < 0.05 and text.startswith("{"):
        text = '{"format_version": 1, ' + text[1:]
        what += ", a key twice"
    return text.encode("utf-8"), what + (", checksum made to match" if forged else ""), forged


def _edit_value(rng: random.Random, document: Any) -> str:
    """Change something somewhere in a document; return what."""
    holders = [node for node in _nodes(document) if isinstance(node, (dict, list)) and node]
    if not holders:
        if isinstance(document, dict):
            document["added"] = rng.choice(ODD)
        else:
            document.append(rng.choice(ODD))
        return "something added"
    holder = rng.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key = rng.choice(keys)
    action = rng.choice(["odd", "odd", "odd", "digit", "digit", "delete", "add", "rename", "copy"])
    if action == "delete":
        del holder[key]
    elif action == "digit":
        holder[key] = _nearby(rng, holder[key])
    elif action == "copy":
        holder[key] = holder[rng.choice(keys)]
    elif isinstance(holder, list) and action in ("add", "rename"):
        holder.insert(key, holder[key] if rng.random() < 0.5 else rng.choice(ODD))
    elif action == "add":
        holder["".join(rng.choices(string.ascii_lowercase, k=5))] = rng.choice(ODD)
    elif action == "rename":
        holder[f"{key}{rng.choice('x_ ')}"] = holder.pop(key)
    else:
        holder[key] = rng.choice(ODD)
    return f"{action} at {str(key)[:40]!r}"


def _nearby(rng: random.Random, value: Any) -> Any:
    """Return almost the same value: one digit or letter is another."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice([-1, 1, 10, -10, 1000])
    if isinstance(value, float):
        return value * rng.choice([1.0000001, 2, -1, 10])
    if isinstance(value, str) and value:
        place = rng.randrange(len(value))
        return value[:place] + rng.choice("0123456789abcdefxyz/.") + value[place + 1 :]
    return rng.choice(ODD)


def _nodes(value: Any) -> list[Any]:
    """Return all nodes of a document."""
    found, left = [], [value]
    while left:
        node = left.pop()
        found.append(node)
        left += node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return found


# Safetensors.


def _is_safetensors(content: bytes) -> bool:
    return content[8:9] == b"{" and 8 + int.from_bytes(content[:8], "little") <= len(content)


def _edit_safetensors(rng: random.Random, content: bytes) -> bytes:
    end = 8 + int.from_bytes(content[:8], "little")
    header = _edit_document(rng, None, content[8:end])[0]
    length = rng.choice([len(header), len(header), len(header), len(header) + 8, 2**40, 2**63])
    return length.to_bytes(8, "little") + header + content[end:]


# Other files, and other things than files.


def _exchange(rng: random.Random, name: str, files: list[str], tree: Path, other: Path) -> Mutation:
    """Put another file of the tree, or of another tree, in the place of a file."""
    if rng.random() < 0.6 and (other / name).is_file():
        shutil.copyfile(other / name, tree / name)
        return Mutation(name, "that of another tree in its place")
    source = rng.choice(files)
    if rng.random() < 0.5 or source == name:
        shutil.copyfile(tree / source, tree / name) if source != name else None
        return Mutation(name, f"{source} in its place", keeps_content=source == name)
    (tree / name).rename(tree / "exchanged")
    (tree / source).rename(tree / name)
    (tree / "exchanged").rename(tree / source)
    return Mutation(name, f"exchanged with {source}")


Place = Callable[[random.Random, Path, Path], tuple[Any, ...]]


def _delete(rng: random.Random, path: Path, aside: Path) -> tuple[Any, ...]:
    path.unlink()
    return ("deleted",)


def _directory(rng: random.Random, path: Path, aside: Path) -> tuple[Any, ...]:
    path.unlink()
    path.mkdir()
    if rng.random() < 0.5:
        (path / "x").write_bytes(b"x")
    return ("a directory",)


def _fifo(rng: random.Random, path: Path, aside: Path) -> tuple[Any, ...]:
    path.unlink()
    os.mkfifo(path)
    return ("a FIFO",)


def _socket(rng: random.Random, path: Path, aside: Path) -> tuple[Any, ...]:
    path.unlink()
    before = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("s")
    os.chdir(before)
    (path.parent / "s").rename(path)
    return ("a socket",)


def _link(rng: random.Random, path: Path, aside: Path) -> tuple[Any, ...]:
    """Put a link in a file's place: to itself, to nothing, to a device, or to the file itself."""
    target = rng.choice(["moved", "self", "missing", "device", "fifo", "above"])
    if target == "moved":
        shutil.move(path, aside / "moved")
        path.symlink_to(aside / "moved")
        return "a link to the file elsewhere", False, True
    path.unlink()
    if target == "fifo":
        os.mkfifo(aside / "fifo")
    places = {"self": path, "missing": aside / "missing", "fifo": aside / "fifo",
              "device": Path("/dev/zero"), "above": path.parent.parent}  # fmt: skip
    path.symlink_to(places[target])
    return (f"a link to {target}",)


def _sparse(rng: random.Random, path: Path, aside: Path) -> tuple[Any, ...]:
    """Make a file 3 GB long; it takes no space on the disk."""
    os.truncate(path, 3 << 30)
    return ("3 GB long",)


def _stray(rng: random.Random, path: Path, aside: Path) -> tuple[Any, ...]:
    """Put a file of a tool's next to a file."""
    name = rng.choice([".DS_Store", "Thumbs.db", "._x", f".{path.name}.swp", f"{path.name}~"])
    (path.parent / name).write_bytes(b"Bud1\0\0")
    return f"{name} next to it", False, True


PLACES: tuple[Place, ...] = (
    _delete, _delete, _directory, _fifo, _socket, _link, _link, _link, _sparse, _stray,
)  # fmt: skip
