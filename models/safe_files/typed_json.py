"""JSON to dataclasses and back, by the annotations of their fields.

Where a field may hold one of several classes (a union), the JSON object carries the class name
under "type". Nothing is looked up outside the annotations, so reading can only ever build the
classes that a field admits. Plugins can add to what `Annotated[..., registry]` admits: to the
values of the registry if these are classes, else, as `Annotated[str, registry]`, to its keys.

A class can say how its JSON objects are read:

    RENAMED: ClassVar[dict[str, str]]  fields that have moved, from the old name to the new one,
                                       which may be dotted: old files are read
    upgrade(fields) -> fields          a static method: what a new name alone cannot express
    JSON_NAME: ClassVar[str]           its name in JSON, if the class has been renamed since files
                                       were written
    IGNORES_UNKNOWN: ClassVar[bool]    ignore fields that it does not have, which a newer version
                                       may have written; otherwise they are errors
    NEWER: ClassVar[frozenset[str]]    fields that are not written while they are empty or 0, as
                                       older versions would reject them
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union

T = TypeVar("T")
SHOWN = 100
"""Characters of a value that messages show."""
REASON = 1000
"""Characters of what a class says of its own values, which it may repeat."""


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type, or impossible; the message is one line."""


def to_json(config: Any) -> Any:
    """Return a configuration's JSON value; dataclasses become objects with their class name."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        newer: frozenset[str] = getattr(config, "NEWER", frozenset())
        values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        fields = {name: to_json(v) for name, v in values.items() if v or name not in newer}
        return {"type": _json_name(type(config)), **fields}
    if isinstance(config, Mapping):
        return {str(key): to_json(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_json(value) for value in config]
    return config


def from_json(annotation: type[T] | Any, value: Any, where: str = "config") -> T:
    """Build a value of `annotation` from JSON; the inverse of to_json.

    Raises:
        ConfigError: The value does not fit the annotation; names the place (`config.data.path`).
    """
    return typing.cast(T, _decode(annotation, value, where))


def _decode(annotation: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(annotation)
    if annotation is Any:
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}={value} must be a finite number")
    if origin is Annotated:
        base, registry = typing.get_args(annotation)
        return _decode_registered(base, registry, value, where)
    if origin in (Union, types.UnionType):
        return _decode_union(typing.get_args(annotation), value, where)
    if origin is Literal:
        choices = typing.get_args(annotation)
        if value not in choices or isinstance(value, bool) != isinstance(choices[0], bool):
            known = ", ".join(map(repr, choices))
            raise ConfigError(f"{where}={_shown(value)} is not one of {known}")
        return value
    if dataclasses.is_dataclass(annotation):
        return _decode_dataclass(typing.cast(type, annotation), value, where)
    if origin is tuple:
        return _decode_tuple(typing.get_args(annotation), value, where)
    if origin is list:
        return list(_decode_tuple((typing.get_args(annotation)[0], Ellipsis), value, where))
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}={_shown(value)} is not an object")
        _, item = typing.get_args(annotation)
        return {key: _decode(item, entry, f"{where}.{_name(key)}") for key, entry in value.items()}
    return _decode_scalar(annotation, value, where)


def _decode_registered(base: Any, registry: Mapping[str, Any], value: Any, where: str) -> Any:
    """Return an object of one of a registry's classes, or one of its names."""
    kinds = {_json_name(member): member for member in registry.values() if base is not str}
    name = value.get("type") if kinds and isinstance(value, dict) else value
    if name in list(kinds or registry):
        return _decode(kinds[name], value, where) if kinds else value
    known = ", ".join(map(repr, kinds or registry))
    similar = did_you_mean(str(name), list(kinds or registry))
    raise ConfigError(
        f"{where}={_shown(name)} is not one of {known}{similar}; what a plugin adds needs its"
        " package, or --import FILE"
    )


def _decode_scalar(annotation: Any, value: Any, where: str) -> Any:
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where}={_shown(value)} is too large") from None
    if annotation is type(None):
        annotation, fits = None, value is None
    else:
        fits = isinstance(value, annotation) and (annotation is bool or not isinstance(value, bool))
    if not fits:
        name = "null" if annotation is None else annotation.__name__
        raise ConfigError(f"{where}={_shown(value)} is not of type {name}")
    return value


def _decode_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}={_shown(value)} is not a list")
    kinds = [items[0]] * len(value) if len(items) == 2 and items[1] is Ellipsis else list(items)
    if len(kinds) != len(value):
        raise ConfigError(
            f"{where}={_shown(value)} has {len(value)} entries, expected {len(kinds)}"
        )
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_decode(kind, entry, f"{where}[{i}]") for i, (kind, entry) in pairs)


def _decode_union(members: tuple[Any, ...], value: Any, where: str) -> Any:
    if isinstance(value, dict) and "type" in value:
        for member in members:
            if _json_name(member) == value["type"]:
                return _decode(member, value, where)
        names = ", ".join(map(_json_name, members))
        raise ConfigError(f"{where} has the unknown type {_shown(value['type'])}; expected {names}")
    problems = []
    for member in members:
        try:
            return _decode(member, value, where)
        except ConfigError as error:
            problems.append(str(error))
    if len(problems) == 1:
        raise ConfigError(problems[0])
    expected = [problem.partition(" is not ")[2] or "of its types" for problem in problems]
    raise ConfigError(f"{where}={_shown(value)} is not {', or '.join(dict.fromkeys(expected))}")


def _decode_dataclass(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}={_shown(value)} is not an object of {cls.__name__}")
    hints = typing.get_type_hints(cls, include_extras=True)
    names = {field.name for field in dataclasses.fields(cls)}
    name = _json_name(cls)
    if value.get("type", name) != name:
        raise ConfigError(f"{where} is of type {_shown(value['type'])}, expected {name}")
    settings = _upgraded(cls, {k: v for k, v in value.items() if k != "type"}, where)
    unknown = sorted(settings.keys() - names)
    if getattr(cls, "IGNORES_UNKNOWN", False):
        settings = {name: entry for name, entry in settings.items() if name in names}
    elif unknown:
        known = ", ".join(sorted(names))
        raise ConfigError(
            f"unknown setting {where}.{_name(unknown[0])}: {cls.__name__} has {known}"
            + did_you_mean(unknown[0], sorted(names))
        )
    if missing := _required(cls) - settings.keys():
        raise ConfigError(f"the field {where}.{min(missing)} is missing")
    decoded = {key: _decode(hints[key], entry, f"{where}.{key}") for key, entry in settings.items()}
    try:
        return cls(**decoded)
    except ConfigError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{where}: {_cut(str(error), REASON)}") from None


def _required(cls: type) -> set[str]:
    """Return the names of the fields without a default."""
    missing = dataclasses.MISSING
    return {
        field.name
        for field in dataclasses.fields(cls)
        if field.init and field.default is missing and field.default_factory is missing
    }


def _json_name(cls: Any) -> str:
    """Return the name of a class in JSON."""
    return str(getattr(cls, "JSON_NAME", getattr(cls, "__name__", cls)))


def _upgraded(cls: type, settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Return settings as they are called now; those that cannot be upgraded are an error."""
    upgrade = getattr(cls, "upgrade", None)
    try:
        upgraded = settings if upgrade is None else upgrade(settings)
    except (TypeError, AttributeError, LookupError) as error:
        raise ConfigError(f"{where} cannot be read as an older {cls.__name__}: {error!r}") from None
    return _with_new_names(cls, upgraded, where)


def _with_new_names(cls: type, settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Return settings read from a file with those that `cls` has renamed in their new places.

    Raises:
        ConfigError: A setting is there under both names.
    """
    renamed: Mapping[str, str] = getattr(cls, "RENAMED", {})
    result = {name: value for name, value in settings.items() if name not in renamed}
    for old_name in settings.keys() & renamed.keys():
        *groups, last = renamed[old_name].split(".")
        node = result
        for group in groups:
            inner = node.get(group) or {}
            if not isinstance(inner, dict):
                raise ConfigError(f"{where}.{group}={_shown(inner)} is not an object")
            node[group] = dict(inner)
            node = node[group]
        if last in node:
            raise ConfigError(f"{where}.{old_name} is also there as {renamed[old_name]}; keep one")
        node[last] = settings[old_name]
    return result


def did_you_mean(unknown: str, known: Sequence[str]) -> str:
    """Return "; did you mean ...?" with the names nearest to an unknown one, or ""."""
    last = unknown.rpartition(".")[2]
    elsewhere = [key for key in known if key.rpartition(".")[2] == last]
    settings = [key for key in known if not unknown.startswith(key + ".")]
    similar = difflib.get_close_matches(unknown, settings, n=3, cutoff=0.7)
    names = list(dict.fromkeys([*elsewhere, *similar]))[:3]
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _name(key: str) -> str:
    return key if key.isprintable() and len(key) <= SHOWN else _shown(key)


def _shown(value: Any) -> str:
    return _cut(repr(value), SHOWN)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 4] + " ..."
