"""Prefect's pages as a person uses them, in a headless Chromium."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

SHOTS = Path(__file__).parents[2] / "build" / "e2e"
PATIENCE = 30_000  # milliseconds until a page shows what it must, on two busy cores


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium; where there is none, the test says so and skips."""
    programs = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    if (program := next(programs, None)) is None:
        pytest.skip("no Chromium on this machine: `make e2e` as root installs it on Debian, or apt install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


@contextlib.contextmanager
def visiting(url: str, shots: Path) -> Iterator["Visitor"]:
    """Somebody at a Prefect server's pages; screenshots of earlier visits are removed."""
    shots.mkdir(parents=True, exist_ok=True)
    for old in shots.glob("*.png"):
        old.unlink()
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1500, "height": 1200})
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        yield Visitor(page, url, shots)


@dataclass
class Visitor:
    """Somebody with a browser."""

    page: Page
    url: str
    shots: Path
    taken: int = 0

    def shoot(self, name: str, whole: bool = False) -> None:
        """Keeps a screenshot, numbered in order. whole: of all that scrolling would show."""
        self.page.wait_for_timeout(800)  # what moves has come to rest
        self.taken += 1
        before = self.page.viewport_size
        if whole and before is not None:
            height = self.page.evaluate(_TALLEST)
            self.page.set_viewport_size({"width": before["width"], "height": min(int(height) + 200, 9000)})
            self.page.wait_for_timeout(500)
        self.page.screenshot(path=self.shots / f"{self.taken:02d}-{name}.png")
        if whole and before is not None:
            self.page.set_viewport_size(before)

    def open_form(self, deployment: str) -> None:
        """Deployments, this one, Run, Custom run."""
        self.page.goto(f"{self.url}/deployments")
        link = self.page.get_by_role("link", name=deployment, exact=True).first
        link.wait_for()
        self.shoot("deployments")
        link.click()
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text("Custom run", exact=True).click()
        self.page.get_by_role("button", name="Submit").wait_for()

    def submit(self) -> None:
        """Sends the form off."""
        self.page.get_by_role("button", name="Submit").click()
        self.page.get_by_text("scheduled to start", exact=False).first.wait_for()
        self.shoot("submitted")

    def open_run(self, run_id: str) -> None:
        """The run's page."""
        self.page.goto(f"{self.url}/runs/flow-run/{run_id}")
        self.page.get_by_text("Beginning flow run", exact=False).first.wait_for()

    def ask_to_cancel(self, run_id: str) -> Locator:
        """The last button to click: the run's page, Cancel, and the dialog that asks again."""
        self.open_run(run_id)
        self.page.get_by_role("button", name="Cancel", exact=True).first.click()
        confirm = self.page.get_by_role("dialog").get_by_role("button", name="Confirm")
        confirm.wait_for()
        self.shoot("cancel")
        return confirm

    def open_tab(self, name: str) -> None:
        """A tab of the run's page."""
        self.page.get_by_text(name, exact=True).first.click()


_TALLEST = "Math.max(...[...document.querySelectorAll('*')].map(node => node.scrollHeight))"
