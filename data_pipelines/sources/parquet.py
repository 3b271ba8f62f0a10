"""Hugging Face parquet shards with a column of encoded images, and perhaps one of class indices."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from data_pipelines.images import BadImage
from data_pipelines.sources.base import Entry, Listing, ReadItem, Skip, SourceError, reading
from data_pipelines.sources.lister.directory import walk
from data_pipelines.sources.lister.pictures import extension, is_hidden
from data_pipelines.sources.lister.splits import choose_split, count_splits, split_name
from models.safe_files.regular import check_file

PARQUET = "a parquet file"
ROWS = 1 << 32  # locator = file number * ROWS + row; parquet files have fewer rows
LABEL_NAMES = ("label", "labels", "class", "fine_label")
MOST_CLASSES = 1 << 20


class _Columns(NamedTuple):
    image: str
    label: str | None
    class_names: tuple[str, ...]

    def allows(self, label: int | None) -> TypeGuard[int]:
        """Tell whether a row's label is a class index (-1 in an unlabelled set)."""
        if self.label is None:
            return label == -1
        limit = len(self.class_names) or MOST_CLASSES
        return label is not None and 0 <= label < limit

    def names_for(self, labels: Iterable[int | None]) -> tuple[str, ...]:
        """Return the class table: the recorded one, or the indices that occur in all splits."""
        if self.label is None or self.class_names:
            return self.class_names
        most = max((label for label in labels if self.allows(label)), default=-1)
        return tuple(str(number) for number in range(1 + most))


@dataclass(frozen=True)
class ParquetSource:
    """One parquet file, or all of a directory, sorted by name.

    Args:
        path: File or directory.
        image_column: Column of the images (encoded bytes, or a struct with a field `bytes`); None
            takes the only one there is.
        label_column: Column of the class indices; None takes the one named in LABEL_NAMES, if any.
        split: Which of `train`, `test`, ... to take, if files of several are there.
    """

    path: Path
    image_column: str | None = None
    label_column: str | None = None
    split: str | None = None
    kind: str = "parquet"
    published: bool = False

    def list_items(self) -> Listing:
        """Return all rows, in order. Raises SourceError if a file is damaged or has no images."""
        files, columns = self._files(), self._columns()
        labels = {path: _labels(path, columns) for path in self._all_files()}
        entries: list[Entry] = []
        unlabelled: dict[str, str] = {}
        for number, (path, prefix) in enumerate(zip(files, self._prefixes(files), strict=True)):
            size = path.stat().st_size
            for row, label in enumerate(labels[path]):
                name = f"{prefix}/{row}"
                index = label if columns.allows(label) else -1
                entries.append(Entry(name, index, size, number * ROWS + row))
                if index < 0 and columns.label is not None:
                    unlabelled[name] = f"wrong label: {label}"
        skips = [Skip(p.name, "in no split") for p in self._all_files() if not self._split_of(p)]
        names = columns.names_for(itertools.chain.from_iterable(labels.values()))
        if columns.label is not None and not names:  # no row has a class
            names = ("0",)
        return Listing(entries, names, tuple(skips) if self.split else (), unlabelled)

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading; one row group is held in memory."""
        yield _RowReader(self._files(), self._columns().image)

    def describe(self) -> dict[str, Any]:
        """Return the path, and the split if one was chosen."""
        return {"path": str(self.path)} | ({"split": self.split} if self.split else {})

    def _files(self) -> list[Path]:
        """Return the files of the chosen split. Raises SourceError if one must be chosen."""
        files = self._all_files()
        splits = [self._split_of(path) for path in files]
        chosen = choose_split(self.split, count_splits(splits), str(self.path), "files")
        if self.split is None:
            return files
        return [path for path, split in zip(files, splits, strict=True) if split in chosen]

    def _all_files(self) -> list[Path]:
        files = [self.path]
        if self.path.is_dir():
            names = [f.name for f in walk(self.path).files if extension(f.name) == "parquet"]
            files = sorted(self.path / name for name in names if not is_hidden(name))
        if not files or not files[0].exists():
            raise SourceError(f"{self.path} holds no parquet file")
        return files

    def _split_of(self, path: Path) -> str:
        """Return the split in a file's name, or in that of its directory, "" if in neither."""
        inside = path.relative_to(self.path).parts if self.path.is_dir() else (path.name,)
        names = [inside[-1].removesuffix(".parquet"), *reversed(inside[:-1])]
        return next((split for name in names if (split := split_name(name).split)), "")

    def _prefixes(self, files: Sequence[Path]) -> list[str]:
        """Return what the files' rows are called by: their names, or their paths to tell them."""
        names = [path.name for path in files]
        if len(set(names)) == len(names):
            return names
        return [path.relative_to(self.path).as_posix() for path in files]

    def _columns(self) -> _Columns:
        schema = _open(self._all_files()[0]).schema_arrow
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
        self._damage = ""

    def __call__(self, entry: Entry) -> bytes:
        if entry.locator not in self._rows:
            self._load_group(*divmod(entry.locator, ROWS))
        if self._damage:
            raise BadImage(self._damage)
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
        try:
            with reading(self._files[number], PARQUET):
                table = file.read_row_group(group, columns=[self._column])
                self._values, self._damage = table.column(0).to_pylist(), ""
        except SourceError as error:  # the other row groups are there
            self._values, self._damage = [], f"unreadable: {error}"
        self._rows = range(start, start + sizes[group])


def _open(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise SourceError("parquet files need pyarrow: pip install 'relaywave[data]'") from None
    with reading(path, PARQUET):
        check_file(path)
        return parquet.ParquetFile(path)


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
    with reading(path, PARQUET):
        labels: list[int | None] = file.read(columns=[columns.label]).column(0).to_pylist()
    return labels


def _class_names(schema: Any, label: str | None) -> tuple[str, ...]:
    """Return the class names that Hugging Face records in the schema's metadata, if any."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
