"""Programs that nobody has read, run in a child process that can do little.

What holds on Linux: no sockets, no other processes, no signals to those there are and no tracing (seccomp); only a
temporary folder can be written, and nothing read but that and Python's own files (Landlock, kernel 5.13 and later);
bounds on CPU time, memory, open files and their sizes; a time-out; an empty environment, so no credentials in it.

What does not: a hole in the kernel is open to the program, since it runs on the same one; where Landlock is missing,
every file of the user can be read and removed; what lies under Python's own folders can be read; nothing hides how long
things take. A container or a virtual machine of its own around the whole run is the stronger wall.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_CONFINED = Path(__file__).with_name("confined.py")
_FILE_BYTES = 2**20


@dataclass(frozen=True)
class Outcome:
    """How a program ended. passed: it came to its end; failed: an error or an exit; stopped: by a bound of time."""

    verdict: Literal["passed", "failed", "stopped"]
    files_confined: bool


def run_confined(program: str, *, seconds: int = 5, memory_bytes: int = 2**30, needs_files: bool = True) -> Outcome:
    """How the program ended. It sees Python's standard library, a temporary folder and nothing else.

    seconds: of CPU time, and twice as many on the clock.
    needs_files: refuse to run where other files can't be kept out of its reach.
    Raises ValueError where the kernel can't confine it.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "program": program,
            "seconds": seconds,
            "memory_bytes": memory_bytes,
            "file_bytes": _FILE_BYTES,
            "needs_files": needs_files,
        }
        description = Path(folder, "job.json")
        description.write_text(json.dumps(job), encoding="utf-8")
        child = subprocess.Popen(
            [sys.executable, "-I", str(_CONFINED), str(description)],
            cwd=folder,
            env={"HOME": folder, "TMPDIR": folder, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            told, _ = child.communicate(timeout=2 * seconds)
            is_late = child.returncode == -signal.SIGXCPU or child.returncode == -signal.SIGKILL
        except subprocess.TimeoutExpired as late:
            is_late, told = True, late.stdout or b""
        finally:
            _end_group(child)
    return _read_outcome(told, is_late, needs_files)


def _end_group(child: "subprocess.Popen[bytes]") -> None:
    """Ends the child and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _read_outcome(told: bytes, is_late: bool, needs_files: bool) -> Outcome:
    first, _, rest = told.partition(b"\n")
    if not first:
        if is_late:
            return Outcome("stopped", True)
        raise ValueError("sandbox: expected the child to say what confines it, found nothing; is this Linux?")
    holds = json.loads(first)
    missing = [name for name in ("network", *(["files"] if needs_files else [])) if not holds[name]]
    if missing:
        raise ValueError(
            f"sandbox: expected a kernel that keeps programs from {' and '.join(missing)}, found one that can't "
            "(seccomp and Landlock, Linux 5.13 or later); run code problems on another machine"
        )
    verdict = "passed" if rest == b"passed\n" else "stopped" if is_late else "failed"
    return Outcome(verdict, holds["files"])  # type: ignore[arg-type]
