"""Work in a process of its own: what it tells, and that neither it nor what it started outlives who wanted it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import BaseModel

from tasks.running.child import read_record, run_child

WORK = """
import os, signal, subprocess, sys, time
from pathlib import Path
from pydantic import BaseModel
from tasks.running.child import serve


class Job(BaseModel):
    text: str


def work(job, progress):
    print("no record")
    if job.text == "bad":
        raise ValueError("expected good, found bad")
    if job.text == "cut":
        os.write(records, b'{"done": 1, "tot')
        os.kill(os.getpid(), signal.SIGKILL)
    if job.text == "nested":
        progress(subprocess.Popen(["sleep", "60"]).pid, 1, "pid")
        time.sleep(60)
    if job.text == "late":
        Path("late.txt").write_text("it went on")
        time.sleep(60)
    progress(1, 2, "words")
    return {"upper": job.text.upper()}


if __name__ == "__main__":
    records = os.dup(1)
    if "late" in Path(sys.argv[1]).read_text():
        Path("pid.part").write_text(str(os.getpid()))
        Path("pid.part").rename("pid")
        while Path("importing").exists():
            time.sleep(0.05)
    sys.exit(serve(Job, work))
"""
OWNER = """
from some_work import Job
from tasks.running.child import run_child
run_child("some_work", Job(text="late"))
"""


class Job(BaseModel):
    text: str


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_work.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path.cwd())]))
    monkeypatch.chdir(tmp_path)


def run(text: str) -> tuple[dict[str, Any], list[tuple[int, int, str]]]:
    told: list[tuple[int, int, str]] = []
    return run_child("some_work", Job(text=text), lambda *progress: told.append(progress)), told


def has_ended(pid: int, seconds: float = 10.0) -> bool:
    """Whether the process, of whoever it is a child, ends in time; one that nobody reaps has ended, too."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_child_tells_its_progress_and_its_facts() -> None:
    assert run("abc") == ({"upper": "ABC"}, [(1, 2, "words")])
    with pytest.raises(ValueError, match=r"^expected good, found bad$"):
        run("bad")


def test_only_whole_records_of_a_child_are_heard() -> None:
    assert read_record(b'{"done": 1}\n') == {"done": 1}
    assert read_record(b"[launcher] starting\n") is None
    assert read_record(b"42\n") is None
    assert read_record(b'{"facts": {"los') is None


def test_a_record_that_a_kill_cut_short_is_no_bad_input() -> None:
    with pytest.raises(RuntimeError, match="killed, probably for memory"):
        run("cut")


def test_what_a_child_started_ends_with_it() -> None:
    started: list[int] = []

    def fail(done: int, total: int, unit: str) -> None:
        started.append(done)
        raise KeyError(unit)

    with pytest.raises(KeyError):
        run_child("some_work", Job(text="nested"), fail)
    assert has_ended(started[0])


def test_a_child_whose_owner_died_before_it_was_ready_never_begins(tmp_path: Path) -> None:
    (tmp_path / "importing").touch()
    owner = subprocess.Popen([sys.executable, "-c", OWNER], env={**os.environ, "TMPDIR": str(tmp_path)})
    while not (tmp_path / "pid").exists():
        assert owner.poll() is None
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    (tmp_path / "importing").unlink()
    ended = has_ended(child)
    if not ended:
        os.kill(child, signal.SIGKILL)
    assert ended
