"""Markup, plots and quantities: the pieces of the page."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_core.metrics import Interval
from tasks.quantities import format_bytes, format_seconds
from tasks.report.charts import WIDTH, Mark, curve, interval_plot, padded, round_ticks, shorten
from tasks.report.markup import Html, element, join, share


class Text(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.attributes = "", [("", "")]
        self.feed(page)
        self.close()

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]


readable = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"))


@given(readable, readable)
def test_text_and_attributes_come_back_as_they_went_in(text: str, value: str) -> None:
    seen = Text(element("p", text, title=value))
    assert seen.text == text
    assert ("title", value) in seen.attributes


def test_markup_is_escaped_once() -> None:
    assert element("p", element("b", "<&>"), "<") == "<p><b>&lt;&amp;&gt;</b>&lt;</p>"
    assert join(["<", Html("<br>")]) == "&lt;<br>"


def test_attributes_are_written_as_html_writes_them() -> None:
    assert element("text", text_anchor="end", class_="a", x=1.0, y=-0.001, r=2.125) == (
        '<text text-anchor="end" class="a" x="1" y="0" r="2.12"></text>'
    )
    assert element("p", class_="") == "<p></p>"


@given(st.floats(-1e6, 1e6), st.floats(1e-4, 1e6))
def test_ticks_are_few_and_within_the_range(low: float, width: float) -> None:
    high = low + width
    ticks = round_ticks(low, high)
    assert len(ticks) <= 6
    assert all(low - 1e-6 * width <= tick <= high + 1e-6 * width for tick in ticks)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.7, 3.6, [2.0, 2.5, 3.0, 3.5]),
        (0, 120, [0, 50, 100]),
        (-29, 1, [-20, -10, 0]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert round_ticks(low, high) == pytest.approx(expected)


def test_a_mark_lies_on_its_axis_by_its_value() -> None:
    marks = [Mark("low", Interval(2.0, 1.9, 2.1), "2.000"), Mark("high", Interval(3.0, 2.8, 3.2), "3.000", strong=True)]
    picture = interval_plot(marks, "bits per byte", span=(1.5, 3.5))
    dots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', picture)]
    start, stop = (float(x) for x in re.findall(r'<line x1="([\d.]+)" y1="46" x2="([\d.]+)" y2="46"', picture)[0])
    assert dots == pytest.approx([start + 0.25 * (stop - start), start + 0.75 * (stop - start)], abs=0.01)
    spans = [
        tuple(map(float, ends)) for ends in re.findall(r'x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)"[^>]*interval', picture)
    ]
    assert all(low < dot < high for (low, high), dot in zip(spans, dots, strict=True))
    assert "bits per byte: low 2.000; high 3.000" in picture


def test_zero_is_drawn_where_the_axis_has_it() -> None:
    mark = Mark("mean", Interval(-4.0, -5.0, -3.0), "−4.0 %")
    assert 'class="zero"' in interval_plot([mark], "%", span=padded(-5, 0), zero=True)
    assert 'class="zero"' not in interval_plot([mark], "%", span=padded(-5, 0))


@pytest.mark.parametrize("points", [[(5.0, 2.5)], [(1.0, 3.0), (2.0, 3.0)], [(1.0, 6.0), (50.0, 2.0), (100.0, 2.5)]])
def test_a_curve_stays_within_its_picture(points: list[tuple[float, float]]) -> None:
    picture = curve(points, "steps", "nats")
    path = re.search(r' d="M([^"]+)"', picture)
    assert path is not None
    places = [tuple(map(float, place.split(","))) for place in path[1].split("L")]
    assert len(places) == len(points)
    assert all(0 <= x <= WIDTH and 0 <= y <= 200 for x, y in places)
    assert f"{points[-1][1]:.3f}" in picture


def test_long_names_are_shortened_to_the_length_asked_for() -> None:
    assert shorten("llama", 5) == "llama"
    assert shorten("open llama", 6) == "open…"
    assert len(shorten("x" * 99, 16)) == 16


def test_a_share_of_nothing_is_none_of_it() -> None:
    assert "0.0" in share(0, 0)
    assert "25.0" in share(1, 4)
    assert "width:25.0%" in share(1, 4)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_960, "100 kB"), (999_600, "1.0 MB"), (2.5e13, "25.0 TB")],
)
def test_bytes_keep_their_leading_digits(size: float, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1 min"), (3599, "1.0 h"), (9000, "2.5 h")]
)
def test_durations_have_one_unit(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
