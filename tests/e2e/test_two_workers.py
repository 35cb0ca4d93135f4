"""Two workers that share nothing but a bucket: they divide the work, and make what one process makes."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tasks.artifacts import Runtime
from tests.conftest import ModelFactory
from tests.e2e.conftest import Bucket
from tests.e2e.contents import contents
from tests.e2e.machine import Server, up
from tests.e2e.processes import running
from tests.e2e.recipes import SHARDS, tiny_recipe

WORKERS = ("first", "second")


@pytest.fixture(scope="module")
def server(place: Path, bucket: Bucket) -> Iterator[Server]:
    with up(place / "home", bucket.root, bucket.environment, "--workers", "") as server:
        yield server


def test_two_workers_make_the_bytes_of_one_process_and_nothing_twice(
    server: Server, place: Path, bucket: Bucket, tiny_llama: ModelFactory, tiny_neox: ModelFactory
) -> None:
    recipe = tiny_recipe(place / "texts", tiny_llama(), tiny_neox()).model_dump(mode="json") | {"evaluation": None}
    shared = {"root": bucket.root, "device": "cpu"}
    alone = {"root": str(place / "alone"), "device": "cpu"}
    with ExitStack() as workers:
        runs = [
            server.start("extract-source/extract-source", {"recipe": recipe, "source": "teacher", "runtime": shared}),
            server.start("fuse-models/fuse", {"recipe": recipe, "runtime": shared}),
        ]
        for name in WORKERS:
            start_worker(workers, name, server, place, bucket)
        assert [server.wait_for(run, 240) for run in runs] == ["COMPLETED", "COMPLETED"]
        single = server.start("fuse-models/fuse", {"recipe": recipe, "runtime": alone})
        assert server.wait_for(single, 240) == "COMPLETED"
    assert {worker_of(server, run) for run in runs} == set(WORKERS)
    assert computed_by(server, runs[0]).isdisjoint(computed_by(server, runs[1]))
    made = contents(Runtime.model_validate({**shared, "cache_dir": str(place / "looking")}))
    assert made == contents(Runtime.model_validate(alone))
    assert sum(address.startswith("extract/") for address in made) == 2 * SHARDS


def start_worker(stack: ExitStack, name: str, server: Server, place: Path, bucket: Bucket) -> None:
    """A worker with a working directory, a home and a cache of its own, for one run at a time."""
    folder = place / name
    folder.mkdir()
    own = {"PREFECT_HOME": str(folder / "prefect"), "XDG_CACHE_HOME": str(folder / "cache")}
    environment = {**bucket.environment, **own, "PREFECT_API_URL": f"{server.url}/api", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "gpu", "--type", "process"]
    log = folder / "log"
    stack.enter_context(
        running(
            [*command, "--name", name, "--limit", "1"], log, lambda: "started" in log.read_text(), environment,
            folder=folder,
        )
    )  # fmt: skip


def worker_of(server: Server, run_id: str) -> str:
    return next(line.split("'")[1] for line in server.said(run_id) if line.startswith("Worker '"))


def computed_by(server: Server, run_id: str) -> set[str]:
    """The shards of the teacher's extraction that this run computed itself."""
    states = server.task_states(run_id).items()
    return {name for name, state in states if state == "Completed" and name.startswith("extract teacher")}
