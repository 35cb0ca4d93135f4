"""No process outlives a run that is killed: a small one waits for the run's end and ends what the run had started.

Without a server of its own a run starts Prefect's, which knows nothing of its parent's end: every run that the kernel
killed would leave one behind, with its 200 MB, for ever.
"""

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator

MARK = "LLM_FUSE_RUN"

# Standard library alone, so that it starts in milliseconds: it reads until the run is gone, then looks for the mark.
_GUARD = """
import os, signal, sys
sys.stdin.buffer.read()
mark = sys.argv[1].encode()
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{pid}/environ", "rb") as stream:
            if mark in stream.read().split(b"\\0") and int(pid) != os.getpid():
                os.kill(int(pid), signal.SIGTERM)
    except OSError:
        pass  # it has ended, or is another user's
"""


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within the block, what this process starts is ended with it, even by SIGKILL. Does nothing but on Linux."""
    if sys.platform != "linux":
        yield
        return
    mark = uuid.uuid4().hex
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD, f"{MARK}={mark}"], stdin=subprocess.PIPE, start_new_session=True
    )
    os.environ[MARK] = mark  # inherited by whatever is started from here on
    try:
        yield
    finally:
        os.environ.pop(MARK, None)
        guard.kill()
        guard.communicate()
