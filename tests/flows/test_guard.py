"""What a run has started ends with it, however it ends."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from flows.cli.guard import MARK, guarded

RUN = """
import subprocess, sys, time
from flows.cli.guard import guarded
with guarded():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print(child.pid, flush=True)
    time.sleep(600)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_a_server_does_not_outlive_the_run_that_was_killed() -> None:
    run = subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    child = psutil.Process(int(run.stdout.readline()))
    try:
        run.send_signal(signal.SIGKILL)
        run.communicate(timeout=10)
        deadline = time.monotonic() + 20
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "what a killed run had started was there 20 s later"
            time.sleep(0.05)
    finally:
        if child.is_running():
            child.kill()


def test_a_run_that_ends_well_ends_nobody() -> None:
    before = set(psutil.Process().children())
    with guarded():
        assert MARK in os.environ
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    assert MARK not in os.environ
    assert set(psutil.Process().children()) - before == {psutil.Process(child.pid)}
    time.sleep(0.3)
    assert child.poll() is None
    child.communicate()
