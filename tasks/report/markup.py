"""HTML and SVG as nested calls, escaped by construction: plain text can't become markup on its way to the page."""

import html
import re
from collections.abc import Iterable, Sequence

_MARKS = re.compile(r"[\\`*_\[\]|#~]")
_SPACE = re.compile(r"[^\S\xa0]+")  # 6.8 % stays on one line


class Html(str):
    """Text that is markup already; `element` and `join` escape every other string."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float) -> Html:
    """`<tag ...>children</tag>`; children and attribute values are escaped unless they are `Html`.

    In attribute names a final `_` is dropped (`class_`), the others become hyphens (`text_anchor`); an empty
    class is left out. Numbers keep two decimals: enough for a coordinate, and the same text everywhere.
    """
    given = {name: _value(value) for name, value in attributes.items() if (name, value) != ("class_", "")}
    opening = "".join(f' {name.removesuffix("_").replace("_", "-")}="{value}"' for name, value in given.items())
    return Html(f"<{tag}{opening}>{join(children)}</{tag}>")


def join(children: Iterable[str]) -> Html:
    """The children one after the other, plain text escaped."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))


def markdown_text(text: str) -> str:
    """Plain text for Markdown, shown as it is on one line: no tag, link, picture, emphasis, code or cell comes of it.

    A bare address in it may be made a link to just that address by who shows it.
    """
    escaped = html.escape(_SPACE.sub(" ", text).strip(), quote=False)
    return _MARKS.sub(r"\\\g<0>", escaped)


def heading(words: str) -> Html:
    """A section's title."""
    return element("h2", words)


def paragraph(words: str, class_: str = "") -> Html:
    """A paragraph."""
    return element("p", words, class_=class_)


def panels(pictures: Sequence[tuple[str, Html]]) -> Html:
    """Pictures with their captions, as many side by side as the page is wide."""
    figures = [element("figure", element("h3", caption), picture) for caption, picture in pictures]
    return element("div", *figures, class_="panels")


def table(header: Sequence[str], rows: Sequence[Html]) -> Html:
    """A table of `row`s that scrolls by itself where the page is narrow."""
    head = element("thead", element("tr", *[element("th", name, scope="col") for name in header]))
    return element("div", element("table", head, element("tbody", *rows)), class_="wide")


def row(name: str, *cells: str, note: str = "", class_: str = "") -> Html:
    """One line of a table: its name with a quieter note, and its cells."""
    first = element("th", name, *([element("span", f" {note}", class_="note")] if note else []), scope="row")
    return element("tr", first, *[element("td", cell) for cell in cells], class_=class_)


def share(part: float, whole: float) -> Html:
    """A percentage with a bar as long; 0 of 0 is 0 %."""
    percentage = 100 * part / whole if whole else 0.0
    bar = element("span", element("span", style=f"width:{percentage:.1f}%"), class_="share")
    return join([f"{percentage:.1f}\N{NO-BREAK SPACE}%", bar])


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return html.escape(value)
    digits = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if digits == "-0" else digits
