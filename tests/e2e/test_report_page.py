"""The report in a browser: quiet, sortable, on a phone and in the dark. Screenshots are kept in build/e2e."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tasks.artifacts import Runtime
from tasks.report import report
from tasks.storage.store import open_store
from tests.tasks.report.conftest import build_run

pytest.importorskip("playwright", reason="pip install 'llm-fuse[e2e]' brings what drives the browser")
from playwright.sync_api import Browser, Page

from tests.e2e.browser import SHOTS, chromium

PHONE, DESK = {"width": 360, "height": 780}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a whole run of three sources, with a regression in one domain."""
    run = build_run(Runtime(root=str(tmp_path_factory.mktemp("report"))), fused_bits=(2.0, 2.9, 2.2))
    ref = report.fn(**run.arguments, runtime=run.runtime)
    return open_store(run.runtime).fetch(ref) / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    SHOTS.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        yield browser


@dataclass
class Opened:
    """A page, and what it said and asked for while it was open."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def column(self, table: int, number: int) -> list[str]:
        """The cells of a column, from top to bottom."""
        rows = self.page.locator("table").nth(table).locator("tbody tr").all()
        return [row.locator("th, td").nth(number).inner_text().strip() for row in rows]

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))

    def shoot(self, name: str) -> None:
        self.page.screenshot(path=SHOTS / f"report-{name}.png", full_page=True)


@pytest.fixture
def opened(browser: Browser, report_file: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """The report, open; parametrized with what the browser's context is to be."""
    context = browser.new_context(**{"viewport": DESK, **getattr(request, "param", {})})
    opened = Opened(context.new_page())
    opened.page.on("console", lambda message: opened.said.append(message.text))
    opened.page.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.page.on("request", lambda asked: opened.asked.append(asked.url))
    opened.page.goto(report_file.as_uri())
    yield opened
    context.close()


SCREENS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": PHONE, "device_scale_factor": 2},
    "dark-phone": {"viewport": PHONE, "device_scale_factor": 2, "color_scheme": "dark"},
}


@pytest.mark.parametrize(("opened", "name"), [(s, n) for n, s in SCREENS.items()], indirect=["opened"], ids=SCREENS)
def test_it_opens_quietly_by_itself_and_fits_the_screen(opened: Opened, report_file: Path, name: str) -> None:
    opened.page.wait_for_load_state("networkidle")
    opened.shoot(name)
    assert opened.said == []
    assert opened.asked == [report_file.as_uri()]
    assert opened.overflow() <= 0
    assert opened.page.locator("svg").count() > 5


@pytest.mark.parametrize("opened", [SCREENS["light"], SCREENS["dark"]], indirect=True, ids=["light", "dark"])
def test_text_stands_out_from_its_paper(opened: Opened) -> None:
    ratios = opened.page.evaluate(_CONTRASTS)
    assert len(ratios) > 100
    assert min(ratios.values()) >= 4.5, sorted(ratios.items(), key=lambda item: item[1])[:3]  # WCAG 2, level AA


def test_a_table_is_sorted_upwards_downwards_and_back(opened: Opened) -> None:
    before = opened.column(0, 0)
    mean = opened.page.locator("table").first.get_by_role("button", name="mean")
    mean.click()
    upwards = [float(cell) for cell in opened.column(0, 4)]
    assert upwards == sorted(upwards)
    assert opened.column(0, 0) != before
    opened.shoot("sorted")
    mean.click()
    assert [float(cell) for cell in opened.column(0, 4)] == sorted(upwards, reverse=True)
    mean.click()
    assert opened.column(0, 0) == before


def test_words_sizes_and_times_are_sorted_as_such_and_totals_stay_last(opened: Opened) -> None:
    tables = opened.page.locator("table")
    for number in range(tables.count()):
        titles = tables.nth(number).locator("thead button").all()
        for column, title in enumerate(titles):
            title.click()
            cells, total = opened.column(number, column), tables.nth(number).locator("tr.total").count()
            sized = [_plain(cell) for cell in cells[: len(cells) - total]]
            if all(isinstance(value, float) for value in sized):
                assert sized == sorted(sized), (number, column)
            assert tables.nth(number).locator("[aria-sort=ascending]").count() == 1
            rows = tables.nth(number).locator("tbody tr").all()
            assert all("total" in (row.get_attribute("class") or "") for row in rows[len(rows) - total :])
    assert opened.said == []


def test_the_keyboard_sorts_too(opened: Opened) -> None:
    opened.page.locator("thead button").nth(1).focus()
    opened.page.keyboard.press("Enter")
    assert opened.page.locator("thead th").nth(1).get_attribute("aria-sort") == "ascending"


@pytest.mark.parametrize("opened", [{"java_script_enabled": False}], indirect=True)
def test_without_scripts_it_is_all_there(opened: Opened) -> None:
    assert "The fused model needs" in opened.page.content()
    assert opened.page.locator("thead button").count() == 0


def test_foreign_scripts_do_not_run(opened: Opened) -> None:
    opened.page.evaluate("""() => {
        const foreign = document.createElement("script");
        foreign.textContent = "document.title = 'taken over'";
        document.body.append(foreign);
    }""")
    assert opened.page.title() == "quickstart"


def test_it_prints_on_paper(opened: Opened, tmp_path: Path) -> None:
    opened.page.emulate_media(media="print")
    opened.page.set_viewport_size({"width": 700, "height": 900})
    opened.shoot("print")
    pdf = opened.page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert pdf.startswith(b"%PDF")
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def _plain(cell: str) -> float | str:
    units = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "s": 1, "min": 60, "h": 3600}
    number, _, unit = cell.replace("\N{NO-BREAK SPACE}", " ").replace(",", "").replace("−", "-").partition(" ")
    try:
        return float(number) * units.get(unit, 1)
    except ValueError:
        return cell


_CONTRASTS = """() => {
    const light = (rgb) => rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const parse = (color) => (color.match(/[\\d.]+/g) || []).map(Number);
    const paper = (node) => {
        for (; node; node = node.parentElement) {
            const [r, g, b, alpha = 1] = parse(getComputedStyle(node).backgroundColor);
            if (alpha > 0) return [r, g, b];
        }
        return [255, 255, 255];
    };
    const found = {};
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
        if (!text || node.closest("script, title") || !node.getClientRects().length) continue;
        const style = getComputedStyle(node);
        const ink = parse(node.closest("svg") ? style.fill : style.color).slice(0, 3);
        const [a, b] = [light(ink), light(paper(node))].sort((x, y) => y - x);
        const name = `${node.tagName}.${node.className.baseVal ?? node.className}: ${text.slice(0, 40)}`;
        found[name] = (a + 0.05) / (b + 0.05);
    }
    return found;
}"""
