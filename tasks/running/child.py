"""A piece of work in a process of its own: killable, with global state of its own, and its words kept apart.

The parent writes a job as JSON and reads JSON lines; the child is `python -P -m MODULE JOB OWNER`, whose main function
is `serve`. What libraries print in the child never mixes with its records. Training, which has launchers, time limits
and failures of its own, is made of the same pieces.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeVar

import psutil
from pydantic import BaseModel

from tasks.artifacts import StoreError
from tasks.running.stopping import check_stopped, when_stopped
from tasks.running.transient import is_transient

ReportProgress = Callable[[int, int, str], None]
J = TypeVar("J", bound=BaseModel)

_ERRORS = {"input": ValueError, "store": StoreError, "transient": OSError}
_LAST_WORDS = 2000  # characters of a dead child's stderr that a message carries


def run_child(
    module: str,
    job: BaseModel,
    progress: ReportProgress = lambda done, total, unit: None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:  # Any: plain JSON
    """The facts that the child ends with.

    environment: variables that the child has besides the parent's own.
    Raises what the child raised where that was for users (`ValueError`, `StoreError`) or is worth another try
    (`OSError`), and `RuntimeError` with its last words when it died without a result.
    """
    with tempfile.TemporaryDirectory() as folder:
        description, words = Path(folder, "job.json"), Path(folder, "stderr")
        description.write_text(job.model_dump_json(), encoding="utf-8")
        # -P: not the working directory's modules
        command = [sys.executable, "-P", "-m", module, str(description), str(os.getpid())]
        with words.open("wb") as stderr:
            child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, env={**os.environ, **(environment or {})}
            )
        with child:
            try:
                with when_stopped(lambda: kill_all(child)):
                    last = _follow(child, progress)
                    code = child.wait()
            finally:
                kill_all(child)
        check_stopped()
        if "error" in last:
            raise _ERRORS[last["kind"]](last["error"])
        if "facts" not in last:
            why = "killed, probably for memory" if code == -9 else f"exit code {code}"
            tail = words.read_text(errors="replace").strip()[-_LAST_WORDS:]
            raise RuntimeError(f"{module}: the child ended without a result ({why}); {tail or 'it said nothing'}")
        return dict(last["facts"])


def serve(job: type[J], work: Callable[[J, ReportProgress], dict[str, Any]]) -> int:
    """The child's exit code, after doing the job that its first argument names; call it under `if __name__ == ...`."""
    end_with(int(sys.argv[2]))
    records = open_records()

    def tell(**record: object) -> None:
        records.write(json.dumps(record) + "\n")

    description = job.model_validate_json(Path(sys.argv[1]).read_bytes())
    try:
        facts = work(description, lambda done, total, unit: tell(done=done, total=total, unit=unit))
    except Exception as error:
        kind = kind_of(error)
        if kind is None:
            raise  # a bug: its traceback is the child's last words
        tell(error=str(error) if kind != "transient" else f"{type(error).__name__}: {error}", kind=kind)
        return 2
    tell(facts=facts)
    return 0


def end_with(owner: int) -> None:
    """Returns at once; ends this process when its parent or the process `owner`, who wants its work, is gone.

    owner: told by that process itself, which may be gone before this one could ask for its parent.
    """
    threading.Thread(target=_watch, args=(owner, os.getppid()), daemon=True).start()


def open_records() -> TextIO:
    """Where this process writes its records; what libraries print to standard output goes to standard error."""
    records = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return records


def read_record(line: bytes) -> dict[str, Any] | None:  # Any: parsed JSON
    """What the child said; None for words of a launcher, or a record that a kill cut short."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def kill_all(child: "subprocess.Popen[bytes]") -> None:
    """Ends the child and all that it started, which would go on writing, and hold their devices."""
    started: list[psutil.Process] = []
    if child.poll() is None:
        with contextlib.suppress(psutil.Error):
            started = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    for process in started:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(started, timeout=1.0)


def kind_of(error: Exception) -> str | None:
    """How the parent shall raise an error; None for a bug."""
    if isinstance(error, ValueError):
        return "input"
    if isinstance(error, StoreError):
        return "store"
    return "transient" if is_transient(error) else None


def _follow(child: "subprocess.Popen[bytes]", progress: ReportProgress) -> dict[str, Any]:  # Any: parsed JSON
    """The child's last record, after all that it told about its progress."""
    last: dict[str, Any] = {}
    for line in child.stdout or ():
        if (record := read_record(line)) is None:
            continue
        last = record
        if "done" in last:
            progress(last["done"], last["total"], last["unit"])
    return last


def _watch(owner: int, parent: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(owner)
        while os.getppid() == parent and process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    os._exit(1)
