"""Plots as inline SVG: intervals on one axis, and curves. Colours come from the page's style sheet.

All plots are as wide as a phone (`WIDTH` units, about as many pixels), so that their text never shrinks:
wider pages put several side by side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fusion_core.metrics import Interval
from tasks.report.markup import Html, element, join

WIDTH = 300
_LABELS, _VALUES, _ROW, _AXIS = 96, 50, 23, 36
_HEIGHT, _MARGIN = 160, 36


@dataclass(frozen=True)
class Mark:
    """One line of an interval plot: its label, where it lies, the number as text; `strong` is the one to look at."""

    label: str
    interval: Interval
    text: str
    strong: bool = False


def interval_plot(marks: Sequence[Mark], unit: str, *, span: tuple[float, float], zero: bool = False) -> Html:
    """A dot and its interval per mark over one axis from `span[0]` to `span[1]`, in `unit`; `zero` draws that line."""
    bottom = _ROW * len(marks)
    axis = _Axis(*span, start=_LABELS + 6, stop=WIDTH - _VALUES - 8)
    parts = [axis.draw_below(bottom, unit)]
    if zero:
        parts.append(_line(axis.place(0), 0, axis.place(0), bottom, "zero"))
    for number, mark in enumerate(marks):
        parts.append(_draw_mark(mark, axis, _ROW * (number + 0.5)))
    said = "; ".join(f"{mark.label} {mark.text}" for mark in marks)
    return _svg(WIDTH, bottom + _AXIS, f"{unit}: {said}", parts)


def curve(points: Sequence[tuple[float, float]], x_unit: str, y_unit: str, *, strong: bool = False) -> Html:
    """A line through (x, y) in order, its last value written at its end. At least one point."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    across = _Axis(0, max(xs), start=_MARGIN, stop=WIDTH - _MARGIN)
    up = _Axis(*padded(min(ys), max(ys)), start=_HEIGHT, stop=20)
    places = [(across.place(x), up.place(y)) for x, y in points]
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
    tone = "strong" if strong else "plain"
    (x, y), last = places[-1], ys[-1]
    parts = [
        across.draw_below(_HEIGHT, x_unit),
        up.draw_left(_MARGIN, WIDTH - _MARGIN),
        element("text", y_unit, x=0, y=10, class_="unit"),
        element("path", d=path, class_=f"curve {tone}"),
        element("circle", cx=x, cy=y, r=2.5, class_=f"dot {tone}"),
        element("text", f"{last:.3f}", x=x + 5, y=y + 4, class_=f"value {tone}"),
    ]
    return _svg(WIDTH, _HEIGHT + _AXIS, f"{y_unit} by {x_unit}: from {ys[0]:.3f} to {last:.3f}", parts)


def padded(low: float, high: float) -> tuple[float, float]:
    """The range with a twentieth of air on both sides; never empty."""
    air = (high - low) / 20 or max(abs(high) / 20, 1e-6)
    return low - air, high + air


def shorten(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis, in at most `length` characters."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def round_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most + 1` multiples of 1, 2 or 5 times a power of ten within low..high, where low < high."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    pace = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / pace - 1e-9), math.floor(high / pace + 1e-9)
    return [number * pace for number in range(first, last + 1)]


@dataclass(frozen=True)
class _Axis:
    """Values `low..high` on the coordinates `start..stop`, in either direction."""

    low: float
    high: float
    start: float
    stop: float

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Coordinates and texts, with as many decimals as tell the ticks apart."""
        values = round_ticks(self.low, self.high)
        pace = values[1] - values[0] if len(values) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(pace) + 1e-9))
        texts = [f"{value:,.{decimals}f}".replace("-", "−") for value in values]
        return [(self.place(value), text) for value, text in zip(values, texts, strict=True)]

    def draw_below(self, y: float, unit: str) -> Html:
        parts = [_line(self.start, y, self.stop, y, "axis")]
        for x, text in self.ticks():
            parts.append(_line(x, y, x, y + 4, "axis"))
            parts.append(element("text", text, x=x, y=y + 15, class_="tick", text_anchor="middle"))
        middle = (self.start + self.stop) / 2
        parts.append(element("text", unit, x=middle, y=y + 30, class_="unit", text_anchor="middle"))
        return join(parts)

    def draw_left(self, x: float, stop: float) -> Html:
        parts = []
        for y, text in self.ticks():
            parts.append(_line(x, y, stop, y, "grid"))
            parts.append(element("text", text, x=x - 6, y=y + 4, class_="tick", text_anchor="end"))
        return join(parts)


def _draw_mark(mark: Mark, axis: _Axis, y: float) -> Html:
    tone = "strong" if mark.strong else "plain"
    interval = mark.interval
    label = element("text", shorten(mark.label, 16), x=0, y=y + 4, class_=f"label {tone}")
    return element(
        "g",
        element("title", f"{mark.label}: {mark.text}"),
        label,
        _line(axis.place(interval.low), y, axis.place(interval.high), y, f"interval {tone}"),
        element("circle", cx=axis.place(interval.estimate), cy=y, r=2.75, class_=f"dot {tone}"),
        element("text", mark.text, x=WIDTH, y=y + 4, class_=f"value {tone}", text_anchor="end"),
    )


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _svg(width: float, height: float, said: str, parts: Sequence[Html]) -> Html:
    return element("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=said)
