"""Line plots with two logarithmic axes, drawn by Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#1f4e9c", "#d9822b", "#2e8b57", "#b3262e", "#7b4fa6")
WIDTH, HEIGHT = 720, 520
LEFT, TOP, RIGHT, BOTTOM = 80, 50, 20, 60
GREY, BLACK = "#dddddd", "#222222"


@dataclass(frozen=True)
class Panel:
    """A plot: its title, and curves by their names in the legend."""

    title: str
    curves: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis: decades from `low` to `high` on the pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def place(self, value: float) -> float:
        """Return the pixel of a positive value."""
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def decades(self) -> range:
        """Return the exponents of ten within the axis."""
        return range(math.ceil(self.low), math.floor(self.high) + 1)


def draw_figure(panels: Sequence[Panel], x: Sequence[float], x_label: str) -> Image.Image:
    """Return panels side by side; points with x or y not positive are left out."""
    figure = Image.new("RGB", (WIDTH * len(panels), HEIGHT), "white")
    for number, panel in enumerate(panels):
        figure.paste(_draw_panel(panel, x, x_label), (WIDTH * number, 0))
    return figure


def _draw_panel(panel: Panel, x: Sequence[float], x_label: str) -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(14)
    positive = [value for value in x if value > 0]
    values = [value for curve in panel.curves.values() for value in curve if value > 0]
    horizontal = Axis(math.log10(min(positive)), math.log10(max(positive)), LEFT, WIDTH - RIGHT)
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    vertical = Axis(low, max(high, low + 1), HEIGHT - BOTTOM, TOP)
    draw.text((LEFT, 16), panel.title, BLACK, font)
    draw.text((WIDTH / 2, HEIGHT - 24), x_label, BLACK, font)
    _draw_grid(draw, horizontal, vertical, font)
    for colour, curve in zip(COLOURS, panel.curves.values(), strict=False):
        points = [
            (horizontal.place(a), vertical.place(b))
            for a, b in zip(x, curve, strict=True)
            if a > 0 and b > 0
        ]
        draw.line(points, colour, 2)
    for row, (colour, name) in enumerate(zip(COLOURS, panel.curves, strict=False)):
        y = HEIGHT - BOTTOM - 22 * (len(panel.curves) - row)
        draw.line([(LEFT + 12, y + 8), (LEFT + 40, y + 8)], colour, 3)
        draw.text((LEFT + 48, y), name, BLACK, font)
    return image


def _draw_grid(
    draw: ImageDraw.ImageDraw,
    horizontal: Axis,
    vertical: Axis,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    for exponent in horizontal.decades():
        x = horizontal.place(10.0**exponent)
        draw.line([(x, TOP), (x, HEIGHT - BOTTOM)], GREY)
        draw.text((x - 8, HEIGHT - BOTTOM + 8), f"{10.0**exponent:g}", BLACK, font)
    for exponent in vertical.decades():
        y = vertical.place(10.0**exponent)
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], GREY)
        draw.text((LEFT - 58, y - 8), f"{10.0**exponent:g}", BLACK, font)
    draw.rectangle([LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM], outline=BLACK)
