"""What a confined program can do, and what it can't: each claim by a program that tries."""

import time
from pathlib import Path

import pytest

from tasks.evaluation.sandbox import run_confined

ESCAPES = {
    "a socket": "import socket\nsocket.socket()",
    "a unix socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "another program": "import os\nos.execv('/bin/true', ['true'])",
    "a shell": "import os\nassert os.system('true') == 0",
    "a copy of itself": "import os\nos.fork()",
    "a copy of itself by hand": "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.syscall(435, 0, 0) >= 0",
    "a signal to its parent": "import os\nos.kill(os.getppid(), 0)",
    "a secret": "open('{secret}').read()",
    "a folder's names": "import os\nos.listdir('{folder}')",
    "a file elsewhere": "open('{folder}/new', 'w')",
    "removing a file": "import os\nos.unlink('{secret}')",
    "cutting a file": "import os\nos.truncate('{secret}', 0)",
    "users of this machine": "open('/etc/passwd').read()",
    "other processes": "open('/proc/1/cmdline').read()",
    "a lot of memory": "x = bytearray(3 * 2**30)",
    "a large file": "open('large', 'wb').write(bytes(2**22))",
    "many files": "files = [open('/dev/null') for _ in range(200)]",
    "a variable of ours": "import os\nos.environ['FUSE_SECRET']",
}


@pytest.mark.parametrize("what", ESCAPES)
def test_out_of_reach(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    monkeypatch.setenv("FUSE_SECRET", "key")
    attempt = ESCAPES[what].format(secret=secret, folder=tmp_path).replace("\n", "\n    ")
    refused = "except (OSError, MemoryError, KeyError, AssertionError):\n    pass\nelse:\n    raise SystemExit(1)"
    assert run_confined(f"try:\n    {attempt}\n{refused}").verdict == "passed"
    assert secret.read_text() == "key"
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_program_that_reaches_its_end_has_passed() -> None:
    program = "import math, hashlib, threading, tempfile, random\nopen('note', 'w').write('x')\nassert math.pi > 3"
    outcome = run_confined(program)
    assert outcome.verdict == "passed"
    assert outcome.files_confined


@pytest.mark.parametrize("end", ["import sys; sys.exit(0)", "import os; os._exit(0)", "assert False", "def broken(:"])
def test_an_early_end_is_no_success(end: str) -> None:
    assert run_confined(end).verdict == "failed"


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(60)"])
def test_time_runs_out(program: str) -> None:
    clock = time.monotonic()
    assert run_confined(program, seconds=1).verdict == "stopped"
    assert time.monotonic() - clock < 10
