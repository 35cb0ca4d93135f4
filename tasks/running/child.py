"""A piece of work in a process of its own: killable, with global state of its own, and its words kept apart.

The parent writes a job as JSON and reads JSON lines; the child is `python -P -m MODULE JOB`, whose main function is
`serve`. What libraries print in the child never mixes with its records.
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
from typing import Any, TypeVar

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
        command = [sys.executable, "-P", "-m", module, str(description)]  # -P: not the working directory's modules
        with words.open("wb") as stderr:
            child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, env={**os.environ, **(environment or {})}
            )
        with child:
            try:
                with when_stopped(child.kill):
                    last = _follow(child, progress)
                    code = child.wait()
            finally:
                child.kill()
        check_stopped()
        if "error" in last:
            raise _ERRORS[last["kind"]](last["error"])
        if "facts" not in last:
            why = "killed, probably for memory" if code == -9 else f"exit code {code}"
            tail = words.read_text(errors="replace").strip()[-_LAST_WORDS:]
            raise RuntimeError(f"{module}: the child ended without a result ({why}); {tail or 'it said nothing'}")
        return dict(last["facts"])


def serve(job: type[J], work: Callable[[J, ReportProgress], dict[str, Any]]) -> int:
    """The child's exit code, after doing the job that its one argument names; call it under `if __name__ == ...`."""
    records = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no record
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def tell(**record: object) -> None:
        records.write(json.dumps(record) + "\n")

    description = job.model_validate_json(Path(sys.argv[1]).read_bytes())
    try:
        facts = work(description, lambda done, total, unit: tell(done=done, total=total, unit=unit))
    except Exception as error:
        kind = _kind_of(error)
        if kind is None:
            raise  # a bug: its traceback is the child's last words
        tell(error=str(error) if kind != "transient" else f"{type(error).__name__}: {error}", kind=kind)
        return 2
    tell(facts=facts)
    return 0


def _follow(child: "subprocess.Popen[bytes]", progress: ReportProgress) -> dict[str, Any]:  # Any: parsed JSON
    """The child's last record, after all that it told about its progress."""
    last: dict[str, Any] = {}
    for line in child.stdout or ():
        last = json.loads(line)
        if "done" in last:
            progress(last["done"], last["total"], last["unit"])
    return last


def _kind_of(error: Exception) -> str | None:
    if isinstance(error, ValueError):
        return "input"
    if isinstance(error, StoreError):
        return "store"
    return "transient" if is_transient(error) else None


def _end_with(parent: int) -> None:
    """Ends this process when whoever wanted its work is gone."""
    with contextlib.suppress(OSError):
        while os.getppid() == parent:
            time.sleep(0.5)
    os._exit(1)
