"""A run that is cancelled by a click: its processes end, nothing half-made stays, the next goes on from there."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.artifacts import Runtime
from tasks.library.garbage import find_garbage
from tasks.library.lineage import Library
from tasks.storage.claims import PREFIX
from tasks.storage.store import open_store
from tasks.training.checkpoints import CHECKPOINTS, MARK
from tests.conftest import ModelFactory
from tests.e2e.machine import Server, up
from tests.e2e.recipes import tiny_recipe

pytest.importorskip("playwright", reason="pip install 'llm-fuse[e2e]' brings what drives the browser")
from playwright.sync_api import expect

from tests.e2e.browser import SHOTS, Visitor, visiting

LIMIT_SECONDS = 10.0
SLOT = "gpu-slots"


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    with up(place / "home", str(place / "store"), {}, "--workers", "gpu", "--gpu-slots", "1") as server:
        yield server


@pytest.fixture(scope="module")
def visitor(server: Server) -> Iterator[Visitor]:
    with visiting(server.url, SHOTS / "cancel") as visitor:
        yield visitor


@pytest.fixture(scope="module")
def recipe(place: Path, tiny_llama: ModelFactory, tiny_neox: ModelFactory) -> dict[str, Any]:
    made = tiny_recipe(place / "texts", tiny_llama(), tiny_neox()).model_dump(mode="json")
    return made | {"evaluation": None, "training": made["training"] | {"epochs": 200}}  # a minute of training


def test_cancelling_stops_a_training_and_a_wait_for_its_slot(
    server: Server, visitor: Visitor, place: Path, recipe: dict[str, Any]
) -> None:
    root = place / "store"
    runtime = {"root": str(root), "device": "cpu", "device_slots": SLOT, "training": {"checkpoint_seconds": 1}}
    asked = {"recipe": recipe, "runtime": runtime}
    run_id = server.start("fuse-models/fuse", asked)
    wait_until(lambda: any(is_training(process) for process in processes_of(run_id)))
    wait_until(lambda: any(root.glob(f"train/*/{CHECKPOINTS}/*/{MARK}")))

    # Another run wants the only slot. It has nothing of its own yet, and must not keep others from making it.
    other = {**recipe, "name": "other", "training": recipe["training"] | {"seed": 1}}
    waiting = server.start("fuse-models/fuse", {**asked, "recipe": other})
    wait_until(lambda: f"train student fused: no slot of {SLOT} is free" in server.said(waiting))
    assert len(claims(root)) == 1
    assert cancel(visitor, server, waiting) < LIMIT_SECONDS
    assert any(is_training(process) for process in processes_of(run_id))

    assert cancel(visitor, server, run_id) < LIMIT_SECONDS
    assert claims(root) == []
    assert leftovers(root) == []

    again = server.start("fuse-models/fuse", asked)
    assert server.wait_for(again, 180) == "COMPLETED"
    (manifest,) = [m for m in Library.load(open_store(Runtime(root=str(root)))).manifests.values() if m.step == "train"]
    assert manifest.facts["resumed_at_step"] > 0
    assert leftovers(root) == []


def cancel(visitor: Visitor, server: Server, run_id: str) -> float:
    """The seconds from the click until none of the run's processes is left. Its page says Cancelled then."""
    button = visitor.ask_to_cancel(run_id)
    clock = time.monotonic()
    button.click()
    wait_until(lambda: not processes_of(run_id))
    seconds = time.monotonic() - clock
    assert server.wait_for(run_id, 60) == "CANCELLED"
    expect(visitor.page.get_by_text("Cancelled", exact=True).first).to_be_visible()
    visitor.shoot("cancelled")
    return seconds


def processes_of(run_id: str) -> list[psutil.Process]:
    """All that the worker started for the run, and what these started."""
    return [
        process for process in psutil.process_iter() if environment_of(process).get("PREFECT__FLOW_RUN_ID") == run_id
    ]


def environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):  # somebody else's, or gone
        return {}


def is_training(process: psutil.Process) -> bool:
    try:
        return "tasks.training.child" in process.cmdline()
    except psutil.Error:
        return False


def claims(root: Path) -> list[Path]:
    return list(root.glob(f"*/*/{PREFIX}*"))


def leftovers(root: Path) -> list[str]:
    """Half-made artifacts."""
    library = Library.load(open_store(Runtime(root=str(root))))
    keep = [manifest.ref for manifest in library.manifests.values()]
    return [item.path for item in find_garbage(library, keep, min_age=0.0)]


def wait_until(happened: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"nothing happened within {seconds:.0f} s"
        time.sleep(0.1)
