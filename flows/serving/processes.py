"""Child processes that end with whoever started them, with all that they started, however that one ends.

Every child carries a mark in its environment, which whatever it starts inherits: Prefect's workers give each run a
session of its own, so neither a process group nor the tree of a dead worker would find it. A watchdog waits at the end
of a pipe; when the pipe closes, also by kill -9 of its other end, it ends whatever carries the mark.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

MARK = "LLM_FUSE_UP"
GRACE_SECONDS = 6.0
"""How long a process may take to end by itself before it is killed: a run tells the server that it was stopped."""
FIRST_GRACE_SECONDS = 2.0
"""The same for the first child, a server that nobody speaks to any more; both together stay under ten seconds."""

LOG_BYTES = 20_000_000
"""Of each child, once more for what came before."""


class Family:
    """Processes that live and die together. A context: leaving it ends them all, the first one started last."""

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.logs = logs
        self._environment = {**environment, MARK: self.mark}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Family":
        self.logs.mkdir(parents=True, exist_ok=True)
        self._watchdog = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, self.mark], stdin=subprocess.PIPE, start_new_session=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._watchdog is not None:
            assert self._watchdog.stdin is not None
            self._watchdog.stdin.close()
            self._watchdog.wait()

    def start(self, name: str, command: Sequence[str], secrets: Mapping[str, str] | None = None) -> None:
        """Starts a child; its output goes to `log(name)`, where that of an earlier one of the name makes way.

        secrets: what this child alone has in its environment.
        """
        with self._fresh_log(name) as stream:
            self._children[name] = subprocess.Popen(
                command,
                env={**self._environment, **(secrets or {})},
                cwd=self.logs.parent,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C on the terminal is the parent's to act on
            )

    def log(self, name: str) -> Path:
        """Where a child writes."""
        return self.logs / f"{name}.log"

    def trim_logs(self) -> None:
        """Sets logs that have grown over `LOG_BYTES` aside, where those of before make way."""
        for name in self._children:
            log = self.log(name)
            if log.stat().st_size > LOG_BYTES:
                shutil.copyfile(log, _kept(log))
                os.truncate(log, 0)  # the child goes on appending; a line written since the copy may be lost

    def last_words(self, name: str) -> str:
        """The last line that a child wrote, for people."""
        lines = self.log(name).read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")

    def ended(self, name: str) -> int | None:
        """A child's exit code, or None while it runs."""
        return self._children[name].poll()

    def wait(self, name: str) -> int:
        """A child's exit code, once it has ended."""
        return self._children[name].wait()

    def stop(self) -> None:
        """Ends all; the first child, which the others speak to, when the others are gone."""
        first = next(iter(self._children.values()), None)
        if first is not None:
            end_marked(self.mark, spare=first.pid)
        end_marked(self.mark, grace=FIRST_GRACE_SECONDS)
        for child in self._children.values():
            child.wait()

    def _fresh_log(self, name: str) -> IO[bytes]:
        log = self.log(name)
        if log.exists():
            log.replace(_kept(log))
        return log.open("ab")


def _kept(log: Path) -> Path:
    return log.with_suffix(".log.1")


def end_marked(mark: str, *, spare: int | None = None, grace: float = GRACE_SECONDS) -> int:
    """How many processes with the mark were ended: told first, killed after `grace` seconds; all but the spared one."""
    found = _marked(mark, spare)
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, living = psutil.wait_procs(found, timeout=grace)
    for process in {*living, *_marked(mark, spare)}:  # and what was started meanwhile
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(living, timeout=1.0)
    return len(found)


def _marked(mark: str, spare: int | None) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # of other users, or gone
            if process.pid not in (spare, os.getpid()) and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def _watch(mark: str) -> None:
    sys.stdin.buffer.read()  # returns when nobody holds the other end any more
    while end_marked(mark):
        time.sleep(0.2)


if __name__ == "__main__":
    _watch(sys.argv[1])
