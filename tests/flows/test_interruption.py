"""`llm-fuse run` told to end in the middle of its work, as a worker or an operating system does it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

from tasks.artifacts import Runtime
from tasks.library.garbage import find_garbage
from tasks.library.lineage import Library
from tasks.storage.store import open_store
from tests.flows.conftest import Bench

pytestmark = pytest.mark.slow

LIMIT_SECONDS = 10.0


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


def extracting(bench: Bench, process: psutil.Process) -> bool:
    """Whether a model reads a shard."""
    return any((bench.root / "extract").glob("*/CLAIM.*"))


def training(bench: Bench, process: psutil.Process) -> bool:
    """Whether a child process trains, with its corpus encoded."""
    is_started = any("tasks.training.child" in _words_of(child) for child in process.children(recursive=True))
    return is_started and any((bench.root / "train").glob("*/.*-trainer-0/tokens-*"))


def _words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


@pytest.mark.parametrize("at_work", [extracting, training])
def test_it_ends_within_seconds_and_leaves_nothing_half_done(
    bench: Bench, at_work: Callable[[Bench, psutil.Process], bool]
) -> None:
    if at_work is extracting:  # minutes of it, in batches of moments
        (bench.texts / "learn-long.txt").write_text("some words to read, again and again\n" * 5_000)
    words = ["run", bench.recipe, "--root", bench.root, "--device", "cpu", "--set", "training.epochs=500"]
    command = [sys.executable, "-c", "import sys; from flows.cli import main; sys.exit(main())", *map(str, words)]
    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as run:
        process = psutil.Process(run.pid)
        _wait_for(lambda: run.poll() is not None or at_work(bench, process))
        assert run.poll() is None, run.stderr and run.stderr.read()
        children = process.children(recursive=True)
        clock = time.monotonic()
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=60)
        seconds = time.monotonic() - clock
    assert run.returncode == 128 + signal.SIGTERM
    assert said.splitlines()[-1] == "interrupted; the same command goes on where it stopped"
    assert seconds < LIMIT_SECONDS
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    assert leftovers(bench.root) == []


def leftovers(root: Path) -> list[str]:
    """Claims and half-made artifacts."""
    library = Library.load(open_store(Runtime(root=str(root))))
    keep = [manifest.ref for manifest in library.manifests.values()]
    return [item.path for item in find_garbage(library, keep, min_age=0.0)]


def _wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline, "nothing happened within 120 s"
        time.sleep(0.05)
