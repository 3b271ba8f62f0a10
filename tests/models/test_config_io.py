from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from models.config_io import (
    ConfigError,
    differences,
    from_json,
    override,
    read_config,
    to_json,
    write_config,
)


@dataclass(frozen=True, kw_only=True)
class Circle:
    radius: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Square:
    edge: int = 2

    def __post_init__(self) -> None:
        if self.edge % 2:
            raise ValueError(f"edge={self.edge} must be even")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    shape: Circle | Square
    colours: tuple[str, ...] = ()
    corner: tuple[int, int] = (0, 0)
    mode: Literal["fill", "line"] = "fill"
    zoom: float | None = None
    by_name: dict[str, Circle] = field(default_factory=dict)
    smooth: bool = False


DRAWING = Drawing(shape=Square(edge=4), colours=("red",), by_name={"a": Circle(radius=2.5)})


def test_json_round_trip(tmp_path: Path) -> None:
    write_config(DRAWING, tmp_path / "config.json")
    assert read_config(Drawing, tmp_path / "config.json") == DRAWING
    assert json.loads((tmp_path / "config.json").read_text())["shape"]["type"] == "Square"


def test_overrides_are_typed_and_validated_together() -> None:
    changed = override(
        DRAWING, ["shape.edge=6", "zoom=2", "mode=line", "corner=[1,2]", "smooth=true"]
    )
    assert changed == Drawing(
        shape=Square(edge=6), colours=("red",), by_name=DRAWING.by_name,
        zoom=2.0, mode="line", corner=(1, 2), smooth=True,
    )  # fmt: skip
    assert override(DRAWING, ["by_name.a.radius=3"]).by_name["a"] == Circle(radius=3.0)
    assert override(DRAWING, ['shape={"type":"Circle","radius":5}']).shape == Circle(radius=5.0)
    assert override(DRAWING, ["zoom=null"]).zoom is None


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("shape.side=3", "unknown setting 'shape.side': shape has the settings edge"),
        ("size=3", "unknown setting 'size': the configuration has the settings shape, colours"),
        ("shape.edge.deep=3", "unknown setting"),
        ("shape.type=Circle", "unknown setting"),
        ("shape.edge=3", "edge=3 must be even"),
        ("shape.edge=2.5", "shape.edge=2.5 is not of type int"),
        ("shape.edge=true", "shape.edge=True is not of type int"),
        ("smooth=1", "smooth=1 is not of type bool"),
        ("mode=dots", "mode='dots' is not one of 'fill', 'line'"),
        ("corner=[1]", "has 1 entries, expected 2"),
        ("colours=[1]", "colours[0]=1 is not of type str"),
        ("zoom=wide", "zoom='wide'"),
        ('shape={"type":"Hexagon"}', "unknown type 'Hexagon'; expected Circle, Square"),
        ('shape={"type":"Circle","radius":5,"radius":6}', "shape: the key 'radius' is given twice"),
        ("noequals", "write key=value"),
        ("=3", "write key=value"),
    ],
)
def test_bad_overrides_say_what_is_wrong(assignment: str, message: str) -> None:
    with pytest.raises(
        ConfigError, match=".*".join(map(_escape, message.split("..."))) or ""
    ) as error:
        override(DRAWING, [assignment])
    assert "\n" not in str(error.value)


def _escape(text: str) -> str:
    import re

    return re.escape(text)


def test_reading_names_the_file_and_the_place(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        read_config(Drawing, path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as a configuration"):
        read_config(Drawing, path)
    path.write_text('{"shape": {"type": "Square", "edge": 4, "colour": 1}}')
    with pytest.raises(ConfigError, match=r"unknown setting config\.json\.shape\.colour"):
        read_config(Drawing, path)
    with pytest.raises(ConfigError, match=r"^the field config\.shape is missing$"):
        from_json(Drawing, {"colours": []})
    path.write_text('{"shape": {"edge": 4}, "shape": {"edge": 6}}')
    with pytest.raises(ConfigError, match=r"config\.json.*: the key 'shape' is given twice"):
        read_config(Drawing, path)


def test_differences_are_dotted() -> None:
    other = override(DRAWING, ["shape.edge=6", "smooth=true"])
    assert differences(to_json(DRAWING), to_json(other)) == {
        "shape.edge": (4, 6),
        "smooth": (False, True),
    }


@dataclass(frozen=True, kw_only=True)
class Border:
    RENAMED: ClassVar[dict[str, str]] = {"thickness": "width"}
    width: float = 1.0
    colour: str = "black"


@dataclass(frozen=True, kw_only=True)
class Picture:
    RENAMED: ClassVar[dict[str, str]] = {"border_width": "border.width", "name": "title"}
    title: str = ""
    border: Border = field(default_factory=Border)


def test_old_names_are_read_in_their_new_places() -> None:
    new = Picture(title="sea", border=Border(width=2.0))
    assert from_json(Picture, {"name": "sea", "border_width": 2}) == new
    half = {"type": "Picture", "title": "sea", "border": {"type": "Border", "thickness": 2}}
    assert from_json(Picture, half) == new
    moved = {"border_width": 2, "border": {"colour": "red"}}
    assert from_json(Picture, moved).border == Border(width=2.0, colour="red")
    assert moved == {"border_width": 2, "border": {"colour": "red"}}, "the document stays as it is"
    assert "border_width" not in to_json(new)
    with pytest.raises(ConfigError, match=r"config\.name is also there as title; keep one"):
        from_json(Picture, {"name": "sea", "title": "land"})


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("name=x", "setting 'name' was renamed; write title=..."),
        ("border_width=3", "setting 'border_width' was renamed; write border.width=..."),
        ("border.thickness=3", "setting 'border.thickness' was renamed; write border.width=..."),
    ],
)
def test_overrides_with_old_names_are_rejected_with_the_new_name(
    assignment: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=_escape(message)):
        override(Picture(), [assignment])


def test_unknown_settings_suggest_similar_ones() -> None:
    for key, suggestion in [
        ("tittle", "did you mean title?"),
        ("border.with", "did you mean border.width?"),
        ("colour", "did you mean border.colour?"),
    ]:
        with pytest.raises(ConfigError, match=_escape(suggestion)):
            override(Picture(), [f"{key}=1"])
    with pytest.raises(ConfigError, match=r"unknown setting config\.tittle.*did you mean title\?"):
        from_json(Picture, {"tittle": "sea"})
    with pytest.raises(ConfigError) as error:
        override(Picture(), ["frobnicate=1"])
    assert "did you mean" not in str(error.value)


@dataclass(frozen=True)
class Tour:
    JSON_NAME: ClassVar[str] = "Trip"
    days: int


@dataclass(frozen=True)
class Outing:
    visit: Tour | Border


def test_a_renamed_class_keeps_its_name_in_json() -> None:
    document = {"type": "Outing", "visit": {"type": "Trip", "days": 2}}
    assert from_json(Outing, document) == Outing(Tour(2))
    assert to_json(Outing(Tour(2))) == document
    assert from_json(Tour, {"days": 2}) == Tour(2)
    with pytest.raises(ConfigError, match="unknown type 'Tour'; expected Trip, Border"):
        from_json(Outing, {"visit": {"type": "Tour", "days": 2}})


def test_reasons_of_a_class_are_not_longer_than_a_line() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Repeats:
        word: str

        def __post_init__(self) -> None:
            raise ValueError(f"word={self.word!r} is none")

    with pytest.raises(ConfigError, match=r"^config: word='aaa.*\.\.\.$") as raised:
        from_json(Repeats, {"word": "a" * 100_000})
    assert len(str(raised.value)) < 1100
