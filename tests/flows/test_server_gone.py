"""A run whose Prefect server dies: its steps go on without it, and the run ends with a sentence, in bounded time."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.e2e import servers

RUN = """
import os, signal, sys
from prefect import flow
from flows.cli.exits import report_error
from flows.cli.launch import launch
from flows.execution import executing
from tasks.artifacts import Runtime, TextsRef
from tasks.step import Output, settle, step

@step(version=1)
def write(number: int, *, runtime: Runtime, out: Output) -> TextsRef:
    (out.dir / "data").write_text(str(number))
    return out.ref(TextsRef)

@step(version=1)
def copy(made: TextsRef, *, runtime: Runtime, out: Output) -> TextsRef:
    (out.dir / "data").write_text("copy")
    return out.ref(TextsRef)

@flow(name="orphaned")
def orphaned(runtime: Runtime):
    os.kill(int(sys.argv[2]), signal.SIGKILL)
    with executing(runtime):
        made = write.submit_each([(number,) for number in range(8)], runtime=runtime, label="write")
        copies = copy.submit_each([(one,) for one in made], runtime=runtime, label="copy")
        print(len(settle(copies, "copies")), flush=True)

try:
    launch(orphaned, runtime=Runtime(root=sys.argv[1], max_workers=2))
except Exception as error:
    sys.exit(report_error(error, verbose=False))
"""


def test_steps_go_on_without_prefects_server_and_the_run_ends_with_a_sentence(tmp_path: Path) -> None:
    with servers.prefect(tmp_path / "prefect") as (url, server):
        assert server.process is not None
        command = [sys.executable, "-c", RUN, str(tmp_path / "store"), str(server.process.pid)]
        own = {"PREFECT_API_URL": url, "PREFECT_HOME": str(tmp_path / "home"), "PREFECT_CLIENT_MAX_RETRIES": "1"}
        clock = time.monotonic()
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **own}, timeout=100, check=False
        )
    assert done.stdout == "8\n", done.stderr[-2000:]
    assert done.returncode == 1
    said = f"error: expected Prefect's server {url} to hear how the run ended, found no answer"
    assert said in done.stderr  # Prefect's own words before it may lack a line break
    assert time.monotonic() - clock < 60
