"""Frozen dataclasses to JSON and back, and typed `key=value` overrides.

A configuration is a tree of keyword-only dataclasses. Where a field may hold one of several classes
(a union), the JSON object carries the class name under "type". Nothing is looked up outside the
annotations, so reading a configuration can only ever build the classes that a field admits.

A class lists settings that have moved in `RENAMED: ClassVar[dict[str, str]]`, from the old name to
the new one, which may be dotted (`{"checkpoint_images": "checkpoint.every_images"}`): files written
with the old names are read, and overrides that use them are rejected with the new name. What a new
name alone cannot express, a static method `upgrade` of the class does to what a file holds.

It lives in `models`, the lowest layer, because a snapshot carries its objective's configuration.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type, or impossible; the message is one line."""


def to_json(config: Any) -> Any:
    """Return a configuration's JSON value; dataclasses become objects with their class name."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": type(config).__name__, **fields}
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


def write_config(config: Any, path: Path) -> None:
    """Write a configuration as indented JSON, atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(to_json(config), indent=2) + "\n")
    temporary.replace(path)


def read_config(annotation: type[T], path: Path) -> T:
    """Read a configuration of the given class from a JSON file.

    Raises:
        ConfigError: The file is not JSON, or does not fit the class.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {error}") from None
    return from_json(annotation, value, path.name)


def override(config: T, assignments: Sequence[str]) -> T:
    """Return `config` with dotted `key=value` assignments applied, e.g. `data.resolution=64`.

    Values are JSON where they parse as such (`0.5`, `true`, `null`, `[1,2]`, `{"type": ...}`) and
    plain text otherwise. All assignments are applied before the dataclasses validate themselves,
    so that settings that only fit together can be changed together.

    Raises:
        ConfigError: An unknown key (lists the known ones), a wrong type, an impossible combination.
    """
    document = to_json(config)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise ConfigError(f"{assignment!r} is not an override; write key=value")
        _reject_renamed(config, key)
        _assign(document, key, _parse_value(text))
    return from_json(type(config), document, type(config).__name__)


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (old, new)} of the settings in which two JSON documents differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in {**old, **new}:
            found |= differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return {} if old == new else {prefix: (old, new)}


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _reject_renamed(config: Any, dotted_key: str) -> None:
    """Reject an override that uses a setting's old name.

    Raises:
        ConfigError: Names the new one.
    """
    node, names = config, dotted_key.split(".")
    for depth, name in enumerate(names):
        new_name = getattr(node, "RENAMED", {}).get(name)
        if new_name is not None:
            now = ".".join([*names[:depth], new_name, *names[depth + 1 :]])
            raise ConfigError(f"setting {dotted_key!r} was renamed; write {now}=...")
        node = node.get(name) if isinstance(node, Mapping) else getattr(node, name, None)


def _assign(document: dict[str, Any], dotted_key: str, value: Any) -> None:
    *parents, last = dotted_key.split(".")
    node: Any = document
    for depth, name in enumerate([*parents, last]):
        adds = depth == len(parents) and isinstance(value, dict)
        if adds and isinstance(node, dict) and "type" not in node:
            break  # another entry of a dict, such as an average or an optimizer
        if not isinstance(node, dict) or name not in node or name == "type":
            known = ", ".join(k for k in node if k != "type") if isinstance(node, dict) else "none"
            place = ".".join(dotted_key.split(".")[:depth]) or "the configuration"
            raise ConfigError(
                f"unknown setting {dotted_key!r}: {place} has the settings {known}"
                + did_you_mean(dotted_key, _dotted_keys(document))
            )
        if depth < len(parents):
            node = node[name]
    node[last] = value


def _dotted_keys(document: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of all settings, groups of settings included."""
    keys = []
    for name, value in document.items():
        if name != "type":
            keys.append(prefix + name)
            if isinstance(value, dict):
                keys += _dotted_keys(value, f"{prefix}{name}.")
    return keys


def did_you_mean(unknown: str, known: Sequence[str]) -> str:
    """Return "; did you mean ...?" with the names nearest to an unknown one, or ""."""
    last = unknown.rpartition(".")[2]
    elsewhere = [key for key in known if key.rpartition(".")[2] == last]
    settings = [key for key in known if not unknown.startswith(key + ".")]
    similar = difflib.get_close_matches(unknown, settings, n=3, cutoff=0.7)
    names = list(dict.fromkeys([*elsewhere, *similar]))[:3]
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _decode(annotation: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        return _decode_union(typing.get_args(annotation), value, where)
    if origin is Literal:
        choices = typing.get_args(annotation)
        if value not in choices or isinstance(value, bool) != isinstance(choices[0], bool):
            raise ConfigError(f"{where}={value!r} is not one of {', '.join(map(repr, choices))}")
        return value
    if dataclasses.is_dataclass(annotation):
        return _decode_dataclass(typing.cast(type, annotation), value, where)
    if origin is tuple:
        return _decode_tuple(typing.get_args(annotation), value, where)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}={value!r} is not an object")
        _, item = typing.get_args(annotation)
        return {key: _decode(item, entry, f"{where}.{key}") for key, entry in value.items()}
    return _decode_scalar(annotation, value, where)


def _decode_scalar(annotation: Any, value: Any, where: str) -> Any:
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation is type(None):
        annotation, fits = None, value is None
    else:
        fits = isinstance(value, annotation) and (annotation is bool or not isinstance(value, bool))
    if not fits:
        name = "null" if annotation is None else annotation.__name__
        raise ConfigError(f"{where}={value!r} is not of type {name}")
    return value


def _decode_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}={value!r} is not a list")
    kinds = [items[0]] * len(value) if len(items) == 2 and items[1] is Ellipsis else list(items)
    if len(kinds) != len(value):
        raise ConfigError(f"{where}={value!r} has {len(value)} entries, expected {len(kinds)}")
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_decode(kind, entry, f"{where}[{i}]") for i, (kind, entry) in pairs)


def _decode_union(members: tuple[Any, ...], value: Any, where: str) -> Any:
    if isinstance(value, dict) and "type" in value:
        for member in members:
            if getattr(member, "__name__", None) == value["type"]:
                return _decode(member, value, where)
        names = ", ".join(getattr(m, "__name__", str(m)) for m in members)
        raise ConfigError(f"{where} has the unknown type {value['type']!r}; expected {names}")
    problems = []
    for member in members:
        try:
            return _decode(member, value, where)
        except ConfigError as error:
            problems.append(str(error))
    raise ConfigError(
        problems[0] if len(problems) == 1 else f"{where}={value!r}: none of its types fit"
    )


def _decode_dataclass(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}={value!r} is not an object of {cls.__name__}")
    hints = typing.get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cls)}
    if value.get("type", cls.__name__) != cls.__name__:
        raise ConfigError(f"{where} is of type {value['type']!r}, expected {cls.__name__}")
    settings = {k: v for k, v in value.items() if k != "type"}
    if hasattr(cls, "upgrade"):
        settings = cls.upgrade(settings)
    settings = _with_new_names(cls, settings, where)
    unknown = sorted(settings.keys() - names)
    if unknown:
        known = ", ".join(sorted(names))
        raise ConfigError(
            f"unknown setting {where}.{unknown[0]}: {cls.__name__} has {known}"
            + did_you_mean(unknown[0], sorted(names))
        )
    decoded = {key: _decode(hints[key], entry, f"{where}.{key}") for key, entry in settings.items()}
    try:
        return cls(**decoded)
    except TypeError as error:  # a required setting is missing
        raise ConfigError(f"{where}: {error}") from None
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


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
            node[group] = dict(node.get(group) or {})
            node = node[group]
        if last in node:
            raise ConfigError(f"{where}.{old_name} is also there as {renamed[old_name]}; keep one")
        node[last] = settings[old_name]
    return result
