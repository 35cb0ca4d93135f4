"""No process outlives the family that it belongs to."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.serving.processes import MARK, Family, end_marked

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
DEAF = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
PARENT = [  # a child that puts its own child into a session of its own, as Prefect's workers do
    sys.executable,
    "-c",
    f"import subprocess, time; subprocess.Popen({SLEEP!r}, start_new_session=True); time.sleep(600)",
]


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            pass
    return found


def wait_until_marked(mark: str, count: int) -> None:
    end = time.monotonic() + 20
    while len(marked(mark)) < count:
        assert time.monotonic() < end, f"expected {count} processes, found {marked(mark)}"
        time.sleep(0.05)


def test_leaving_ends_children_and_their_children(tmp_path: Path) -> None:
    with Family(os.environ, tmp_path / "logs") as family:
        family.start("first", SLEEP)
        family.start("parent", PARENT)
        wait_until_marked(family.mark, 3)
        assert family.ended("first") is None
    assert marked(family.mark) == []


def test_who_does_not_listen_is_killed(tmp_path: Path) -> None:
    with Family(os.environ, tmp_path / "logs") as family:
        family.start("deaf", DEAF)
        wait_until_marked(family.mark, 1)
        time.sleep(0.5)  # until it has become deaf
        began = time.monotonic()
        assert end_marked(family.mark, grace=0.3) == 1
        assert marked(family.mark) == []
        assert time.monotonic() - began < 5


def test_kill_9_of_the_parent_ends_all(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import os, time
        from pathlib import Path
        from flows.serving.processes import Family
        with Family(os.environ, Path({str(tmp_path / "logs")!r})) as family:
            family.start("deaf", {DEAF!r})
            family.start("parent", {PARENT!r})
            print(family.mark, flush=True)
            time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        mark = parent.stdout.readline().strip()
        wait_until_marked(mark, 3)
        parent.kill()
    end = time.monotonic() + 15
    while marked(mark):
        assert time.monotonic() < end, "the watchdog left processes behind"
        time.sleep(0.1)


def test_output_goes_to_a_log_and_the_last_one_is_kept(tmp_path: Path) -> None:
    with Family(os.environ, tmp_path / "logs") as family:
        for word in ("one", "two"):
            family.start("speaker", [sys.executable, "-c", f"print('{word}'); print(); raise SystemExit(3)"])
            assert family.wait("speaker") == 3
        assert family.last_words("speaker") == "two"
        assert family.log("speaker").with_suffix(".log.1").read_text().strip() == "one"


def test_a_secret_is_told_to_one_child_alone(tmp_path: Path) -> None:
    show = [sys.executable, "-c", "import os; print(os.environ.get('DATABASE', 'nothing'))"]
    with Family(os.environ, tmp_path / "logs") as family:
        family.start("server", show, {"DATABASE": "secret"})
        family.start("worker", show)
        assert (family.wait("server"), family.wait("worker")) == (0, 0)
        assert (family.last_words("server"), family.last_words("worker")) == ("secret", "nothing")


def test_another_family_is_left_alone(tmp_path: Path) -> None:
    with Family(os.environ, tmp_path / "a") as left, Family(os.environ, tmp_path / "b") as other:
        left.start("one", SLEEP)
        other.start("two", SLEEP)
        left.stop()
        assert left.ended("one") is not None
        assert other.ended("two") is None


def test_a_child_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with Family(os.environ, tmp_path / "logs") as family, pytest.raises(FileNotFoundError):
        family.start("none", ["/no/such/command"])


def test_a_log_that_grows_is_set_aside_and_written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.serving.processes.LOG_BYTES", 1000)
    with Family(os.environ, tmp_path / "logs") as family:
        family.start("loud", [sys.executable, "-uc", "import time\nwhile True: print('a line'); time.sleep(0.001)"])
        log, aside = family.log("loud"), tmp_path / "logs" / "loud.log.1"
        for _ in range(2):
            _wait_for(lambda: log.stat().st_size > 1000)
            family.trim_logs()
            assert log.stat().st_size < 1000 < aside.stat().st_size
        _wait_for(lambda: log.stat().st_size > 500)
        assert b"\0" not in log.read_bytes()  # it goes on at the end, not where it was


def _wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end, "nothing happened within 20 s"
        time.sleep(0.01)
