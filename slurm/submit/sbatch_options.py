"""Options of sbatch on our command lines: each becomes what `Resources` calls it.

A job's request is made of three layers: the command line, above `SBATCH_*` of the user's shell,
above the site profile. Options that only sbatch reads are in `Resources.sbatch` under its names.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.command_line import say
from slurm.resources import Resources, parse_minutes, replaces
from slurm.sbatch_keys import BY_RELAYWAVE, INSTEAD, check_key, shell_options

Fields = dict[str, Any]
"""Values of fields of `Resources`."""
LARGEST = 1 << 31
NODES = re.compile(r"(?:(\d+)-)?(\d+)")
GPUS = re.compile(r"(?:([A-Za-z][\w.-]*):)?(\d+)|([A-Za-z][\w.-]*)")
GRES_GPUS = re.compile(r"(?:gres[:/])?gpu(?::([A-Za-z][\w.-]*))?(?:[:=](\d+))?")
SIGNAL = re.compile(r"(?:SIG)?USR2(?:@(\d+))?")
DEFAULT_SIGNAL_SECONDS = 60
"""How long before the time limit sbatch sends a signal for which no time is given."""


@dataclass(frozen=True)
class Option:
    """An option: what its text sets, its explanation, its other names, its value without one."""

    parse: Callable[[str], Fields]
    help: str
    aliases: tuple[str, ...] = ()
    bare: str | None = None


def _text(field: str) -> Callable[[str], Fields]:
    return lambda text: {field: text}


def _minutes(field: str) -> Callable[[str], Fields]:
    return lambda text: {field: parse_minutes(text)}


def _number(field: str) -> Callable[[str], Fields]:
    return lambda text: {field: _int(text)}


def _sbatch(key: str) -> Callable[[str], Fields]:
    return lambda text: {"sbatch": {key: text}}


def _int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"{text!r:.80} is not a whole number") from None
    if abs(value) >= LARGEST:
        raise ValueError(f"{text:.80} is too large")
    return value


def _nodes(text: str) -> Fields:
    """Parse `4`, or `2-4`: as many as Slurm can give now."""
    match = NODES.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r:.80} is no number of nodes, such as 4 or 2-4")
    fewest, nodes = _int(match[1] or match[2]), _int(match[2])
    return {"nodes": nodes, "fewest_nodes": fewest if fewest != nodes else 0}


def _gpus(text: str) -> Fields:
    match = GPUS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r:.80} is no number of GPUs, such as 8 or a100:8")
    return {"gpus_per_node": _int(match[2] or "1"), "gpu_type": match[1] or match[3] or ""}


def _gres(text: str) -> Fields:
    """Keep sbatch's text; GPUs in it are the node's GPUs, which ranks are counted by."""
    fields: Fields = {"sbatch": {"gres": text}}
    counts = [match[2] for part in text.split(",") if (match := GRES_GPUS.fullmatch(part))]
    if len(counts) > 1:
        raise ValueError(f"{text!r:.80} has GPUs of several kinds; ranks need equal ones")
    return fields | ({"gpus_per_node": _int(counts[0] or "1"), "gpu_type": ""} if counts else {})


def _signal(text: str) -> Fields:
    match = SIGNAL.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r:.80} is not like USR2@300: jobs save at USR2 and at no other")
    return {"signal_seconds": _int(match[1]) if match[1] else DEFAULT_SIGNAL_SECONDS}


def _exclusive(text: str) -> Fields:
    return {"sbatch": {"exclusive": text}} if text else {"exclusive": True}


def _any(text: str) -> Fields:
    """Parse `KEY=VALUE` or `KEY` of any option of sbatch."""
    key, _, value = text.partition("=")
    return parse_option(key.strip().removeprefix("--"), value)


OPTIONS = {
    "nodes": Option(_nodes, "number of nodes, or 2-4: as many as Slurm can give", ("N",)),
    "gpus-per-node": Option(
        _gpus, "GPUs per node, as 8 or a100:8; also ranks per node, unless --tasks-per-node is set"
    ),
    "tasks-per-node": Option(_number("tasks_per_node"), "ranks per node", ("ntasks-per-node",)),
    "cpus-per-task": Option(_number("cpus_per_task"), "cores per rank", ("c",)),
    "nice": Option(_number("nice"), "lowers the priority"),
    "time": Option(_minutes("minutes"), "time limit, as 90, 24:00:00 or 2-12:00:00", ("t",)),
    "time-min": Option(
        _minutes("min_minutes"), "shortest acceptable time limit, to start before a maintenance"
    ),
    "exclusive": Option(_exclusive, "share no node", bare=""),
    "signal": Option(_signal, "as USR2@300: the signal to save comes 300 s before the time limit"),
    "array-parallelism": Option(
        _number("array_parallelism"), "how many tasks of an array run at once"
    ),
    "gres": Option(_gres, "as sbatch's --gres, such as gpu:a100:8"),
    **{
        name: Option(_text(name.replace("-", "_")), f"as sbatch's --{name}", aliases)
        for name, aliases in {
            "partition": ("p",), "account": ("A",), "qos": ("q",), "constraint": ("C",),
            "reservation": (), "mem": (), "comment": (), "mail-type": (), "mail-user": (),
            "exclude": ("x",), "nodelist": ("w",), "dependency": ("d",), "begin": ("b",),
        }.items()
    },
    **{
        name: Option(_sbatch(name), f"as sbatch's --{name}", aliases)
        for name, aliases in {
            "gpus-per-task": (), "cpus-per-gpu": (), "mem-per-cpu": (), "mem-per-gpu": (),
            "switches": (), "licenses": ("L",), "hint": (),
        }.items()
    },
    "sbatch": Option(_any, "any other option of sbatch, as KEY=VALUE or KEY; may be repeated"),
}  # fmt: skip
"""Options of the request, by their names; sbatch's own names except for `sbatch`."""
NAMES = {alias: name for name, option in OPTIONS.items() for alias in option.aliases}


def parse_option(name: str, text: str) -> Fields:
    """Return what an option of sbatch sets.

    Raises:
        ValueError: Its value is invalid, or relaywave sets the option itself.
    """
    key = NAMES.get(name) or NAMES.get(name.replace("_", "-")) or check_key(name)
    if key != "sbatch" and key in OPTIONS:
        return OPTIONS[key].parse(text)
    return {"sbatch": {key: text}}


def add_sbatch_options(group: argparse._ArgumentGroup) -> None:
    """Add OPTIONS, with their short forms; what they set is collected in `requested`."""
    for name, option in OPTIONS.items():
        flags = [f"-{alias}" if len(alias) == 1 else f"--{alias}" for alias in option.aliases]
        parse = _typed(name, option)
        bare = {} if option.bare is None else {"nargs": "?", "const": parse(option.bare)}
        group.add_argument(
            *flags, f"--{name}", dest="requested", action="append", type=parse, help=option.help,
            metavar=name.upper().replace("-", "_"), **bare,  # type: ignore[arg-type]
        )  # fmt: skip


def _typed(name: str, option: Option) -> Callable[[str], tuple[str, Fields]]:
    def parse(text: str) -> tuple[str, Fields]:
        try:
            return name, option.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def requested_by(options: Sequence[tuple[str, Fields]]) -> Fields:
    """Return the request of the command line above that of the user's shell.

    Args:
        options: Names of the options of the command line, and what each sets.

    Raises:
        ValueError: Options contradict each other, or a variable of the shell has an invalid value.
    """
    return overlaid(_merged(_by_shell()), _merged(options))


def requested_by_texts(texts: Mapping[str, Any]) -> Fields:
    """Return the request of options by sbatch's names. Raises ValueError if one is invalid."""
    return _merged([(name, parse_option(name, str(text))) for name, text in texts.items()])


def changed(earlier: Mapping[str, Any], requested: Mapping[str, Any]) -> Resources:
    """Return an earlier request with what is requested now, and what follows from that.

    Args:
        earlier: Fields of `Resources`.
        requested: Fields of `Resources`, above them.
    """
    chosen = overlaid(earlier, requested)
    if "tasks_per_node" not in requested and "gpus_per_node" in requested:
        chosen.pop("tasks_per_node", None)
    chosen.setdefault("tasks_per_node", max(int(chosen.get("gpus_per_node", 0)), 1))
    per_task = str(chosen["sbatch"].get("gpus-per-task", "")).rpartition(":")[2]
    if per_task.isdigit() and "gpus_per_node" not in requested:
        chosen["gpus_per_node"] = int(per_task) * chosen["tasks_per_node"]
    return Resources(**chosen)


def _by_shell() -> list[tuple[str, Fields]]:
    found = []
    for key, text in shell_options().items():
        if key in BY_RELAYWAVE or key in INSTEAD:
            say(f"sbatch's {key}, which a variable SBATCH_* sets, has no effect here", "warning")
            continue
        try:
            found.append((key, parse_option(key, text)))
        except ValueError as error:
            raise ValueError(f"a variable SBATCH_* sets {key}: {error}") from None
    return found


def _merged(options: Sequence[tuple[str, Fields]]) -> Fields:
    """Return what options set together; the last one of a name counts."""
    merged: Fields = {}
    by: dict[str, str] = {}
    named = {name: fields for name, fields in options if name != "sbatch"}
    for name, fields in [*named.items(), *(pair for pair in options if pair[0] == "sbatch")]:
        for field, value in fields.items():
            if field == "sbatch":
                value = merged.get(field, {}) | value
            elif by.get(field, name) != name and merged[field] != value:
                raise ValueError(f"--{by[field]} contradicts --{name}; leave one out")
            merged[field], by[field] = value, name
    return merged


def overlaid(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> Fields:
    """Return a request with the values of another above it, which also end what they replace."""
    options, own = dict(lower.get("sbatch", {})), dict(upper.get("sbatch", {}))
    kept = {key: text for key, text in options.items() if replaces(key, text) not in upper}
    ended = {replaces(key, text) for key, text in own.items()}
    fields = {name: value for name, value in lower.items() if name not in ended}
    return {**fields, **upper, "sbatch": kept | own}
