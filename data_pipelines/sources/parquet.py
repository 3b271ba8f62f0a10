"""Hugging Face parquet shards with a column of encoded images, and perhaps one of class indices."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from data_pipelines.images import BadImage
from data_pipelines.sources.base import Entry, Listing, ReadItem, Skip, SourceError

ROWS = 1 << 32  # locator = file number * ROWS + row; parquet files have fewer rows
LABEL_NAMES = ("label", "labels", "class", "fine_label")


class _Columns(NamedTuple):
    image: str
    label: str | None
    class_names: tuple[str, ...]

    def allows(self, label: int | None) -> TypeGuard[int]:
        """Tell whether a row's label is a class index (-1 in an unlabelled set)."""
        if self.label is None:
            return label == -1
        limit = len(self.class_names) or 1 << 31
        return label is not None and 0 <= label < limit

    def names_for(self, entries: Sequence[Entry]) -> tuple[str, ...]:
        """Return the class table: the recorded one, or the indices that occur."""
        if self.label is None or self.class_names:
            return self.class_names
        return tuple(str(n) for n in range(1 + max((e.label for e in entries), default=-1)))


@dataclass(frozen=True)
class ParquetSource:
    """One parquet file, or all of a directory, sorted by name.

    Args:
        path: File or directory.
        image_column: Column of the images (encoded bytes, or a struct with a field `bytes`); None
            takes the only one there is.
        label_column: Column of the class indices; None takes the one named in LABEL_NAMES, if any.
    """

    path: Path
    image_column: str | None = None
    label_column: str | None = None
    kind: str = "parquet"
    published: bool = False

    def list_items(self) -> Listing:
        """Return all rows, in order. Raises SourceError if a file is damaged or has no images."""
        columns = self._columns()
        entries: list[Entry] = []
        skips: list[Skip] = []
        for number, path in enumerate(self._files()):
            size = path.stat().st_size
            for row, label in enumerate(_labels(path, columns)):
                name = f"{path.name}/{row}"
                if columns.allows(label):
                    entries.append(Entry(name, label, size, number * ROWS + row))
                else:
                    skips.append(Skip(name, f"wrong label: {label}"))
        return Listing(entries, columns.names_for(entries), tuple(skips))

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading; one row group is held in memory."""
        yield _RowReader(self._files(), self._columns().image)

    def describe(self) -> dict[str, Any]:
        """Return the path."""
        return {"path": str(self.path)}

    def _files(self) -> list[Path]:
        files = sorted(self.path.rglob("*.parquet")) if self.path.is_dir() else [self.path]
        if not files or not files[0].exists():
            raise SourceError(f"{self.path} holds no parquet file")
        return files

    def _columns(self) -> _Columns:
        schema = _open(self._files()[0]).schema_arrow
        images = [self.image_column] if self.image_column else _image_columns(schema)
        if len(images) != 1 or images[0] not in schema.names:
            raise SourceError(
                f"{self.path}: choose the column of images with --image-column;"
                f" the columns are {', '.join(schema.names)}"
            )
        label = self.label_column or next((n for n in LABEL_NAMES if n in schema.names), None)
        if label is not None and label not in schema.names:
            raise SourceError(f"{self.path} has no column {label!r}, but {', '.join(schema.names)}")
        return _Columns(images[0], label, _class_names(schema, label))


class _RowReader:
    """Reads images by row; keeps the row group of the last one, which likely holds the next."""

    def __init__(self, files: list[Path], column: str) -> None:
        self._files, self._column = files, column
        self._rows = range(0)
        self._values: list[Any] = []

    def __call__(self, entry: Entry) -> bytes:
        if entry.locator not in self._rows:
            self._load_group(*divmod(entry.locator, ROWS))
        value = self._values[entry.locator - self._rows.start]
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise BadImage("no bytes: the row is empty, or only names a file elsewhere")
        return content

    def _load_group(self, number: int, row: int) -> None:
        """Load the row group that holds a row of file `number`."""
        file = _open(self._files[number])
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        ends = list(itertools.accumulate(sizes))
        group = bisect.bisect_right(ends, row)
        start = number * ROWS + ends[group] - sizes[group]
        self._rows = range(start, start + sizes[group])
        self._values = file.read_row_group(group, columns=[self._column]).column(0).to_pylist()


def _open(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise SourceError("parquet files need pyarrow: pip install 'relaywave[data]'") from None
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise SourceError(f"{path} cannot be read as a parquet file: {reason}") from None


def _image_columns(schema: Any) -> list[str]:
    """Return the columns that can hold encoded images."""
    from pyarrow import types

    def fits(kind: Any) -> bool:
        if types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    return [field.name for field in schema if fits(field.type)]


def _labels(path: Path, columns: _Columns) -> list[int | None]:
    file = _open(path)
    if columns.image not in file.schema_arrow.names:
        raise SourceError(f"{path} has no column {columns.image!r} as the first file has")
    if columns.label is None:
        return [-1] * file.metadata.num_rows
    labels: list[int | None] = file.read(columns=[columns.label]).column(0).to_pylist()
    return labels


def _class_names(schema: Any, label: str | None) -> tuple[str, ...]:
    """Return the class names that Hugging Face records in the schema's metadata, if any."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
