"""A person with a browser: fills the form, watches a shard fail, clicks Retry, and reads what came of it.

Everything is real: Postgres, an S3 server, `llm-fuse up` with Prefect's server and a worker, Chromium. The fault is a
line to the bucket that refuses what one shard writes. Screenshots are kept in build/e2e.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.fuse import fuse_models
from flows.recipe import Recipe
from tasks.artifacts import ReportRef, Runtime
from tasks.corpus import build_corpus
from tasks.step import planning
from tasks.storage.store import Store
from tests.conftest import ModelFactory
from tests.e2e.conftest import Bucket
from tests.e2e.machine import Server, up
from tests.e2e.recipes import SHARDS, tiny_recipe

pytest.importorskip("playwright", reason="pip install 'llm-fuse[e2e]' brings what drives the browser")
from playwright.sync_api import expect

from tests.e2e.browser import SHOTS, Visitor, visiting

BROKEN = "extract teacher 003/004"


@dataclass(frozen=True)
class Team:
    """What is set up: a server with a worker, a preset on it, and the bucket behind both."""

    server: Server
    recipe: Recipe
    bucket: Bucket
    elsewhere: Runtime  # of another machine, which shares the bucket alone

    def address_of(self, label: str) -> str:
        """Where the step's result lies or will lie, once the corpus is there."""
        with planning() as planned:
            fuse_models.fn(self.recipe, self.elsewhere)
        return next(entry.ref.address for entry in planned if entry.label == label)


@pytest.fixture(scope="module")
def team(
    place: Path, postgres_url: str, bucket: Bucket, tiny_llama: ModelFactory, tiny_neox: ModelFactory
) -> Iterator[Team]:
    recipe = tiny_recipe(place / "texts", tiny_llama(), tiny_neox())
    environment = {**bucket.environment, "XDG_CACHE_HOME": str(place / "cache")}
    words = ("--postgres", postgres_url, "--workers", "cpu")
    with up(place / "home", bucket.root, environment, *words) as server:
        server.add_preset("tiny", "fuse-models/quickstart", recipe.model_dump(mode="json"), device="cpu")
        yield Team(server, recipe, bucket, Runtime(root=bucket.root, cache_dir=str(place / "other"), device="cpu"))


@pytest.fixture(scope="module")
def desk(team: Team) -> Iterator[Visitor]:
    with visiting(team.server.url, SHOTS) as visitor:
        yield visitor


@pytest.fixture
def visitor(desk: Visitor) -> Iterator[Visitor]:
    yield desk
    desk.shoot("in-the-end")  # whatever failed, it is seen here


def test_a_failed_shard_is_retried_from_the_browser(team: Team, visitor: Visitor) -> None:
    build_corpus.fn(team.recipe.corpus, [], runtime=team.elsewhere)
    team.bucket.line.denied = re.compile(rf"^PUT .*/{team.address_of(BROKEN)}/\w+/scored")

    # The form: another strategy.
    visitor.open_form("tiny")
    visitor.page.get_by_text("AvgCE", exact=True).click()
    expect(visitor.page.get_by_text("All candidates teach, with weights", exact=False)).to_be_visible()
    visitor.shoot("form", whole=True)
    visitor.submit()
    run_id = last_run(team.server)
    asked = team.server.ask("GET", f"/flow_runs/{run_id}")["parameters"]["recipe"]
    assert asked == team.recipe.model_dump(mode="json") | {"fusion": asked["fusion"]}
    assert asked["fusion"]["kind"] == "avg_ce"

    # One shard fails, the others go on, the run says how many.
    assert team.server.wait_for(run_id, 180) == "FAILED"
    visitor.open_run(run_id)
    expect(visitor.page.get_by_text("Failed", exact=True).first).to_be_visible()
    visitor.shoot("failed-run")
    states = team.server.task_states(run_id)
    assert {name for name, state in states.items() if state == "Failed"} == {BROKEN}
    assert sum(name.startswith("extract") and state == "Completed" for name, state in states.items()) == 2 * SHARDS - 1
    assert team.server.ask("GET", f"/flow_runs/{run_id}")["state"]["message"].startswith(f"1/{SHARDS} shards failed: ")
    grid = table_of(team.server, run_id, "shards")
    assert grid[2]["extract teacher"].startswith("failed: PermissionError")
    open_artifact(visitor, run_id, "tiny-shards")
    visitor.shoot("failed-shards")

    # Retry, with the line mended: only what is missing is computed.
    team.bucket.line.denied = None
    visitor.open_run(run_id)
    visitor.page.get_by_role("button", name="Retry").first.click()
    visitor.page.get_by_role("dialog").get_by_role("button", name="Retry").click()
    assert team.server.wait_for(run_id, 60, lambda run: run["run_count"] > 1) != "FAILED"
    assert team.server.wait_for(run_id, 180) == "COMPLETED"
    visitor.open_run(run_id)
    expect(visitor.page.get_by_text("Completed", exact=True).first).to_be_visible()
    visitor.shoot("retried-run")
    states = team.server.task_states(run_id)
    assert states[f"extract teacher: {SHARDS - 1} of {SHARDS} cached"] == "Cached"
    grid = table_of(team.server, run_id, "shards")
    read = [row["extract teacher"] for row in grid]
    assert [cell.split()[0].strip(",") for cell in read] == ["cached", "cached", "computed", "cached"]
    visitor.open_tab("Task Runs")
    expect(visitor.page.get_by_text("Cached", exact=True).first).to_be_visible()
    visitor.shoot("retried-tasks", whole=True)


def test_what_came_of_it_can_be_read(team: Team, visitor: Visitor) -> None:
    run_id = last_run(team.server)
    open_artifact(visitor, run_id, "tiny-shards")
    visitor.shoot("shards")
    open_artifact(visitor, run_id, "tiny-quality")
    visitor.shoot("quality")
    open_artifact(visitor, run_id, "tiny-lineage")
    visitor.shoot("lineage")
    open_artifact(visitor, run_id, "tiny-comparison")
    expect(visitor.page.get_by_text("bits per byte", exact=False).first).to_be_visible()
    visitor.shoot("comparison")
    text = next(a["data"] for a in artifacts(team.server, run_id) if a["key"] == "tiny-comparison")
    found = re.search(r"report/(\w+)/\w+/report\.html", text)
    assert found is not None, text
    report = ReportRef(step="report", fingerprint=found[1])
    folder = Store(team.bucket.root, cache_dir=team.elsewhere.cache_dir).fetch(report)
    visitor.page.goto((folder / "report.html").as_uri())
    expect(visitor.page.get_by_role("heading", name="tiny").first).to_be_visible()
    visitor.shoot("report", whole=True)


def last_run(server: Server) -> str:
    return str(server.ask("POST", "/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 1})[0]["id"])


def open_artifact(visitor: Visitor, run_id: str, key: str) -> None:
    visitor.open_run(run_id)
    visitor.open_tab("Artifacts")
    visitor.page.get_by_text(key, exact=True).last.click()
    visitor.page.wait_for_url("**/artifacts/artifact/**")
    expect(visitor.page.get_by_text("Flow Run", exact=True).first).to_be_visible()


def artifacts(server: Server, run_id: str) -> list[dict[str, Any]]:
    """The artifacts of the run's last try."""
    wanted = {"flow_runs": {"id": {"any_": [run_id]}}, "sort": "CREATED_DESC", "limit": 100}
    return list(server.ask("POST", "/artifacts/filter", wanted))


def table_of(server: Server, run_id: str, name: str) -> list[dict[str, str]]:
    data = next(a["data"] for a in artifacts(server, run_id) if a["key"] == f"tiny-{name}")
    return list(json.loads(data) if isinstance(data, str) else data)
