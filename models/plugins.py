"""Plugins: modules of others that add objectives, recipes, sources of images, metrics, ...

Each kind of thing that can be added has a `Registry` where that kind lives; docs/extending.md lists
them. A plugin is a module that registers what it adds when it is imported. Commands import

    the modules that installed packages name as entry points of the group `relaywave.plugins`, and
    each FILE or MODULE of `--import`.

A run records its imports with their digests (`Import`). Jobs run a copy of the code, which has the
plugins of the command that submitted it in `relaywave_plugins/`: those are imported instead.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

from models.safe_files.documents import read_object
from models.safe_files.typed_json import did_you_mean, from_json

T = TypeVar("T")
GROUP = "relaywave.plugins"
OPTION = "--import"
CODE = Path(__file__).resolve().parents[1]
"""Directory of our packages: a checkout, the copy that a job runs, or site-packages."""
COPIES = "relaywave_plugins"
"""Directory of plugins in a copy of the code."""
DESCRIPTION = "plugin.json"
NAME = re.compile("[A-Za-z][A-Za-z0-9_-]*")


class PluginError(ValueError):
    """A plugin that is missing, was changed, or does not work; names its file or module."""


class Registry(dict[str, T], Generic[T]):
    """All things of one kind by name, in the order in which they were added.

    Args:
        kind: What they are, for messages: `metric`.
        fits: Their class; for functions, `collections.abc.Callable`.
        things: Those of relaywave itself.
    """

    def __init__(self, kind: str, fits: Any, things: Mapping[str, T] | None = None) -> None:
        super().__init__(things or {})
        self.kind, self._fits = kind, fits

    def register(self, name: str, thing: T) -> T:
        """Add a thing and return it.

        Raises:
            PluginError: The name is taken, or no name; or the thing is of another class.
        """
        if not NAME.fullmatch(name):
            raise PluginError(f"{self.kind} {name!r}: a name is made of letters, digits, _ and -")
        if name in self:
            raise PluginError(f"there is a {self.kind} {name!r} already; choose another name")
        if not isinstance(thing, self._fits):
            expected = getattr(self._fits, "__name__", self._fits)
            found = type(thing).__name__
            raise PluginError(f"{self.kind} {name!r} is of class {found}, expected {expected}")
        self[name] = thing
        return thing

    def unknown(self, name: str) -> str:
        """Return what is wrong with a name that is not among them: for messages."""
        meant = did_you_mean(name, [*self])
        return f"{self.kind} {name!r} is not one of {', '.join(self)}{meant}"


@dataclass(frozen=True)
class Import:
    """What a run records of a FILE or MODULE that was imported for it.

    Attributes:
        name: The absolute path of the file, or the name of the module.
        sha256: Digest of the file, or of all files of the module's top-level package.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Plugin:
    """A plugin that was found.

    Attributes:
        name: The absolute path of a file, or the name of a module.
        root: The directory that its files are relative to.
        files: The file, or all files of the module's top-level package.
        requested: Whether it was named by --import, rather than by an installed package.
    """

    name: str
    root: Path
    files: tuple[Path, ...]
    requested: bool

    @property
    def sha256(self) -> str:
        """Digest of the files' names and contents."""
        digest = hashlib.sha256()
        for file in self.files:
            content = (self.root / file).read_bytes()
            digest.update(f"{file}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()


LOADED: dict[str, Plugin] = {}
"""The plugins that this process has imported, by name."""


def load(arguments: Sequence[str] = ()) -> None:
    """Import all plugins that a command line has, and those of installed packages.

    Raises:
        PluginError: One is missing or cannot be imported.
    """
    for plugin in _copies():
        _import(plugin)
    for module in installed():
        if module not in LOADED:
            _import(_find(module, requested=False))
    for name in map(_absolute, _requested(arguments)):
        if name not in LOADED or not LOADED[name].requested:
            _import(_find(name, requested=True))


def installed() -> list[str]:
    """Return the modules that installed packages name, in order."""
    return sorted(point.module for point in importlib.metadata.entry_points(group=GROUP))


def load_recorded(imports: Any, place: object) -> None:
    """Import what a run was started with, unless the files have changed since.

    Args:
        imports: As the run recorded them, JSON of `Import`s.
        place: The file that says so.

    Raises:
        PluginError: One is missing or has changed.
    """
    where = f"{place}: imports"
    records: tuple[Import, ...] = from_json(tuple[Import, ...], imports or [], where)
    for recorded in records:
        if recorded.name in LOADED:  # as the command line says, or the copy of the code has it
            continue
        plugin = _find(recorded.name, requested=True)
        if plugin.sha256 != recorded.sha256:
            raise PluginError(
                f"{recorded.name} has changed since {place} recorded it (sha256"
                f" {recorded.sha256[:12]}, now {plugin.sha256[:12]}) and is not imported; restore"
                f" it, or add {OPTION} {recorded.name} --allow-changes to resume with it"
            )
        _import(plugin)


class Reimport:
    """Pickles as: import this process' plugins. What is unpickled after it may be of their classes.

    A process that is started by pickles (spawn) has read no command line.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the call that unpickling makes."""
        return _reimported, (tuple(LOADED.values()),)


def _reimported(found: Sequence[Plugin]) -> Reimport:
    for plugin in found:
        if plugin.name not in LOADED:
            _import(plugin)
    return Reimport()


def imported() -> tuple[Import, ...]:
    """Return what runs that are started now record of --import."""
    requested = (LOADED[name] for name in sorted(LOADED) if LOADED[name].requested)
    return tuple(Import(plugin.name, plugin.sha256) for plugin in requested)


def copied_files() -> dict[Path, bytes]:
    """Return what a copy of the code holds of this process' plugins, by relative path."""
    found: dict[Path, bytes] = {}
    for plugin in LOADED.values():
        place = Path(COPIES, hashlib.sha256(plugin.name.encode()).hexdigest()[:12])
        described = {"name": plugin.name, "requested": plugin.requested}
        found[place / DESCRIPTION] = json.dumps(described).encode()
        found |= {place / "code" / file: (plugin.root / file).read_bytes() for file in plugin.files}
    return found


def _copies() -> Iterator[Plugin]:
    """Yield the plugins beside this copy of the code that are not imported yet."""
    for description in sorted((CODE / COPIES).glob(f"*/{DESCRIPTION}")):
        described, root = read_object(description), description.parent / "code"
        if described["name"] not in LOADED:
            yield Plugin(described["name"], root, _files_below(root, root), described["requested"])


def _requested(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the values of --import on a command line; its parser says if one is missing."""
    for here, after in pairwise([*arguments, ""]):
        if here == OPTION:
            yield after
        elif here.startswith(f"{OPTION}="):
            yield here.partition("=")[2]


def _absolute(name: str) -> str:
    return str(Path(name).absolute()) if _is_file(name) else name


def _is_file(name: str) -> bool:
    return name.endswith(".py") or "/" in name


def _find(name: str, requested: bool) -> Plugin:
    """Find a plugin's files without importing it. Raises PluginError if there are none."""
    if _is_file(name):
        path = Path(name)
        if not path.is_file():
            raise PluginError(f"{OPTION} {name}: there is no such file")
        return Plugin(name, path.parent, (Path(path.name),), requested)
    top = name.partition(".")[0]
    spec = importlib.util.find_spec(top) if top.isidentifier() else None
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        raise PluginError(
            f"{OPTION} {name}: there is no module {top!r}; name a file (its name ends with .py), or"
            " install the module, or add its directory to PYTHONPATH"
        )
    if not spec.submodule_search_locations:
        path = Path(spec.origin or "")
        return Plugin(name, path.parent, (Path(path.name),), requested)
    directory = Path(next(iter(spec.submodule_search_locations)))
    return Plugin(name, directory.parent, _files_below(directory, directory.parent), requested)


def _files_below(directory: Path, root: Path) -> tuple[Path, ...]:
    return tuple(
        path.relative_to(root)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    )


def _import(plugin: Plugin) -> None:
    """Import a plugin. Raises PluginError, with the line at fault, whatever it raises."""
    try:
        if _is_file(plugin.name):
            _import_file(plugin)
        else:
            if CODE / COPIES in plugin.root.parents:
                sys.path.insert(0, str(plugin.root))
            importlib.import_module(plugin.name)
    except (Exception, SystemExit) as error:
        files = {str(plugin.root / file) for file in plugin.files}
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
        line = f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""
        kind = "" if isinstance(error, PluginError) else f"{type(error).__name__}: "
        remedy = "leave it out" if plugin.requested else "uninstall its package"
        raise PluginError(
            f"the plugin {plugin.name} cannot be imported: {line}{kind}{error}; mend it or {remedy}"
        ) from error
    LOADED[plugin.name] = plugin


def _import_file(plugin: Plugin) -> None:
    """Import a file as a module of its own name, which no other module can have."""
    path = plugin.root / plugin.files[0]
    name = f"relaywave_import_{plugin.sha256[:12]}_{path.stem}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their annotations there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
