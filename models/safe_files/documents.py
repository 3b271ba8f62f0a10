"""JSON documents: size, version, checksum and types are checked before anything is used.

A kind of document is a `Format`: a dataclass whose annotations are the types of the fields, and
whose `__post_init__` checks their bounds. What does not fit is one line that names the file. Fields
that the dataclass lacks are ignored, for a newer version may have added them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from models.safe_files.atomic import atomic_file
from models.safe_files.regular import open_file
from models.safe_files.transient import retried
from models.safe_files.typed_json import ConfigError, from_json

T = TypeVar("T")
MAX_BYTES = 1 << 28
"""Size above which a file is no document of ours: a manifest of a million shards has 150 MB."""


class DocumentError(ValueError):
    """A document that is damaged, changed, or of another version; the message is one line."""


class UnfitDocument(DocumentError):  # noqa: N818 (what was found)
    """A document that is intact, but whose fields are not those of its kind, or out of bounds."""


class RepeatedKey(ValueError):  # noqa: N818 (what was found)
    """A key that is given twice in one JSON object."""


@dataclass(frozen=True, kw_only=True)
class Format(Generic[T]):
    """A kind of document.

    Attributes:
        schema: The dataclass of its fields; see typed_json for what a class can say.
        version: The `format_version` that is read and written; null for documents without.
        oldest: The oldest `format_version` that is read; null for `version` only.
        needs_checksum: Whether a document without a checksum is rejected; those of kinds that were
            once written without one are not.
        made: What writes such documents, for the message that one was changed after it.
        remedy: What to do about a document that cannot be used.
        indent: Spaces per level of the text; null writes one line.
    """

    schema: type[T]
    version: int | None = None
    oldest: int | None = None
    needs_checksum: bool = False
    made: str = "writing"
    remedy: str = "restore it, or write it again"
    indent: int | None = 1

    def write(self, path: Path, fields: Mapping[str, Any]) -> None:
        """Write a document atomically, with its version and a checksum."""
        with atomic_file(path) as file:
            file.write(self.to_bytes(fields))

    def to_bytes(self, fields: Mapping[str, Any]) -> bytes:
        """Return a document's text."""
        version = {} if self.version is None else {"format_version": self.version}
        document = {**version, **fields}
        document["checksum"] = checksum(document)
        return json.dumps(document, indent=self.indent).encode() + b"\n"

    def read(self, path: Path) -> T:
        """Read a document.

        Raises:
            FileNotFoundError: There is none.
            DocumentError: It cannot be read, or is not such a document.
        """
        try:
            document = read_object(path)
        except DocumentError as error:
            raise DocumentError(f"{error}; {self.remedy}") from None
        return self.decode(document, str(path))

    def parse(self, content: bytes, where: str) -> T:
        """Return the document of a text; `where` names it in messages. Raises as `read`."""
        try:
            document = parse_object(content, where)
        except DocumentError as error:
            raise DocumentError(f"{error}; {self.remedy}") from None
        return self.decode(document, where)

    def decode(self, document: dict[str, Any], where: str) -> T:
        """Return the document of a JSON object; `where` names it in messages. Raises as `read`."""
        self._check_version(document, where)
        self._check_checksum(document, where)
        ours = {"format_version", "checksum"}
        fields = {name: value for name, value in document.items() if name not in ours}
        try:
            return from_json(self.schema, fields, "it")
        except (ConfigError, RecursionError) as error:
            raise UnfitDocument(f"{where} does not parse: {error}; {self.remedy}") from None

    def _check_version(self, document: dict[str, Any], where: str) -> None:
        if self.version is None:
            return
        version = document.get("format_version")
        known = range(self.oldest or self.version, self.version + 1)
        if not isinstance(version, int) or isinstance(version, bool) or version not in known:
            raise DocumentError(
                f"{where} has format {json.dumps(version)[:40]}, this relaywave reads"
                f" {self.version}; use the relaywave that wrote it, or {self.remedy}"
            )

    def _check_checksum(self, document: dict[str, Any], where: str) -> None:
        if "checksum" not in document and not self.needs_checksum:
            return
        content = {name: value for name, value in document.items() if name != "checksum"}
        if document.get("checksum") != checksum(content):
            raise DocumentError(
                f"{where} was changed after {self.made} (its checksum does not match);"
                f" {self.remedy}"
            )


def replace_document(
    path: Path, document: Mapping[str, Any], note: Callable[[list[str]], None]
) -> None:
    """Write a JSON file whose checksum is in another one: its own keys are read by older versions.

    Args:
        path: The file.
        document: Its content.
        note: Writes the checksums that are valid: while the file is being replaced, of the old
            content and of the new, so that a kill in between leaves a file that is read.
    """
    new = checksum(document)
    try:
        old = checksum(read_object(path))
    except (OSError, DocumentError):
        old = new
    note(sorted({old, new}))
    with atomic_file(path) as file:
        file.write(json.dumps(document, indent=2).encode() + b"\n")
    note([new])


def read_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file that holds a JSON object; tries again after errors of the moment.

    Raises:
        FileNotFoundError: There is none.
        DocumentError: It cannot be read, is too large, or holds anything else.
    """
    try:
        content = retried(lambda: read_regular(path, max_bytes), f"reading {path}")
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:  # what should be a directory above it is a file
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except OSError as error:
        raise DocumentError(f"{path} cannot be read: {error.strerror}") from None
    return parse_object(content, str(path))


def read_regular(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Return a regular file's content.

    Raises:
        OSError: It cannot be read, or is no regular file.
        DocumentError: It is too large.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise DocumentError(f"{path} has {size} bytes, more than any document of ours")
        return file.read()


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object of a text; `where` names it in messages. Raises DocumentError."""
    try:
        value = parse_json(content)
    except RepeatedKey as error:
        raise DocumentError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{where} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DocumentError(f"{where} holds {json.dumps(value)[:40]}, expected a JSON object")
    return value


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        RepeatedKey: An object has a key twice, of which `json.loads` would drop the first.
        ValueError: It is not JSON; RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise RepeatedKey(f"the key {name!r:.100} is given twice; keep one of them")
        found[name] = value
    return found


def checksum(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a document's canonical text."""
    return hashlib.sha256(canonical_json(document)).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the canonical JSON text of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
