"""What a subject of the fuzzer is: a kind of files, and what reads it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.command_line import describe, say
from tests.fuzz.mutations import Mutation

Result = Mapping[str, str]
"""What a probe delivered, by name: digests of samples, labels, weights, rows, ..."""


class Rejected(Exception):  # noqa: N818 (what a probe says when its command rejected a file)
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Difference:
    """A command that succeeded with another result than without the mutation."""

    mutation: Mutation
    before: Result
    after: Result
    said: str

    @property
    def changed(self) -> list[str]:
        """Names of what is missing or another."""
        return [name for name, value in self.before.items() if self.after.get(name) != value]

    @property
    def added(self) -> list[str]:
        """Names of what was not there before."""
        return [name for name in self.after if name not in self.before]


def nothing_may_differ(difference: Difference) -> bool:
    return False


@dataclass(frozen=True)
class Subject:
    """A kind of files, and what reads it.

    Attributes:
        name: For command lines and reports.
        make: Writes a small valid tree into a directory that does not exist; the number, 0 or 1,
            chooses one of two that differ.
        probe: Reads the tree of a directory and returns what was delivered; raises Rejected.
        files: Patterns of files that are mutated.
        legal: Whether another result is right, for instance because what was skipped is named.
        writes: Whether the probe may write into the tree when it succeeds.
        caches: Whether it may leave a cache in `out` when it fails.
    """

    name: str
    make: Callable[[Path, int], None]
    probe: Callable[[Path], Result]
    files: tuple[str, ...] = ("**/*",)
    legal: Callable[[Difference], bool] = nothing_may_differ
    writes: bool = False
    caches: bool = False

    def mutable(self, tree: Path) -> list[str]:
        """Return the files that may be mutated, relative to the tree."""
        found = {path for pattern in self.files for path in tree.glob(pattern) if path.is_file()}
        return sorted(str(path.relative_to(tree)) for path in found)


def run(main: Callable[[Sequence[str]], int], *arguments: object) -> None:
    """Run a command. Raises Rejected if it does not succeed."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    if code:
        raise Rejected(code)


@contextlib.contextmanager
def as_a_command(*errors: type[Exception]) -> Iterator[None]:
    """Do with a library's errors what commands do: one line."""
    try:
        yield
    except (ValueError, OSError, *errors) as error:
        say(describe(error))
        raise Rejected(2) from None


def digest(content: Any) -> str:
    """Return a short digest of bytes, or of what repr says."""
    if not isinstance(content, (bytes, bytearray, memoryview)):
        content = repr(content).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def said_of_each(difference: Difference) -> bool:
    """Whether all that is missing, or another, is named in what was said."""
    return not difference.added and all(name in difference.said for name in difference.changed)
