"""Clock: a machine's clock is set an hour ahead or back while a claim is held, the owner's or the waiter's.

No claim is stolen from an owner that lives, and one that died blocks nobody for longer than its lease. Setting the
machine's own clock would disturb it, so the trials are told another time of day by a library that is loaded before
libc's, and another time of the boot by a file like the kernel's: both move when a clock is set. (libfaketime, which
does the former too, breaks `time.sleep` of Python 3.11 and later.)
"""

import contextlib
import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import psutil

from tasks.artifacts import Runtime, TextsRef
from tasks.library.lineage import Library
from tasks.step import Output, step
from tasks.storage.claims import PREFIX
from tasks.storage.store import Store
from tests.drills.outcome import Outcome, Skip
from tests.drills.workload import Fork, Workload, fork
from tests.e2e.processes import call

NAME = "clock: an hour ahead or back, claim held"
LEASE_SECONDS = 2.0
BODY_SECONDS = 4 * LEASE_SECONDS
JUMPS = (3600, -3600)
SECONDS_BEFORE_JUMP = 1.0
NEW_UTS_NAMESPACE = 0x04000000
JUMP = "DRILLED_CLOCK_JUMP"
LIBRARY = f"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *told) {{
    int (*ask)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int code = ask(clock, told);
    const char *jump = getenv("{JUMP}");
    if (clock == CLOCK_REALTIME && jump)
        told->tv_sec += atol(jump);
    return code;
}}
"""


def drill(workload: Workload, short: bool) -> Iterator[Outcome | Skip]:
    """One line, of trials that are held at the same time."""
    compiler = shutil.which("cc")
    if compiler is None or not psutil.LINUX:
        yield Skip(NAME, "needs Linux and a C compiler, cc")
        return
    folder = workload.folder / "clocks"
    folder.mkdir()
    library = folder / "clock.so"
    source = library.with_suffix(".c")
    source.write_text(LIBRARY)
    call(compiler, "-shared", "-fPIC", "-o", library, source, "-ldl")
    command = [sys.executable, "-m", "tests.drills.clock", str(folder), *(["--short"] if short else [])]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "LD_PRELOAD": str(library)}, check=False
    )
    said = (done.stdout.strip().splitlines() or [""])[-1]
    yield Outcome(**json.loads(said)) if not done.returncode else Outcome(NAME, wrong=1, remark=done.stderr[-200:])


@dataclass(frozen=True)
class Trial:
    """Whose clock jumps, how far, whether the owner is killed then, and whether it is on another machine."""

    jumper: str
    jump: int
    is_killed: bool
    is_elsewhere: bool
    folder: Path

    @property
    def held(self) -> list[float]:
        """When a body began, by the clock that is never set; the owner's first."""
        file = self.folder / "held"
        return [float(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def runtime(self) -> Runtime:
        return Runtime(root=str(self.folder / "store"), lease_seconds=LEASE_SECONDS)

    def begin(self, role: str) -> Fork:
        """The owner or the waiter, who wants the same."""

        def act() -> None:
            if role == "owner" and self.is_elsewhere:
                move_elsewhere()
            if role == self.jumper:
                delay = threading.Timer(SECONDS_BEFORE_JUMP, set_clock, [self.jump, self.folder / f"{role}-proc"])
                delay.daemon = True
                delay.start()
            occupy.fn(str(self.folder), runtime=self.runtime)

        return fork(act, self.folder / f"{role}.log")


@step(version=1)
def occupy(folder: str, *, runtime: Runtime, out: Output) -> TextsRef:
    """A file, made slowly; notes when that began."""
    with Path(folder, "held").open("a") as stream:
        stream.write(f"{time.monotonic()}\n")
    time.sleep(BODY_SECONDS)
    (out.dir / "data").write_text(folder)
    return out.ref(TextsRef)


def set_clock(jump: int, proc: Path) -> None:
    """From now on this process is told another time of day, and another time of the boot, since when it is as long."""
    proc.mkdir()
    for entry in Path("/proc").iterdir():
        if entry.name != "stat":
            (proc / entry.name).symlink_to(entry)
    told = Path("/proc/stat").read_text()
    (proc / "stat").write_text(re.sub(r"btime (\d+)", lambda found: f"btime {int(found[1]) + jump}", told))
    before = time.time()
    psutil.PROCFS_PATH = str(proc)
    os.environ[JUMP] = str(jump)
    assert abs(time.time() - before - jump) < 60, "the clock was not set"


def move_elsewhere() -> None:
    """Gives this process a host name of its own, so that others can't tell whether it lives. Needs root."""
    assert ctypes.CDLL(None).unshare(NEW_UTS_NAMESPACE) == 0, "expected to be allowed to leave the host's name"
    socket.sethostname("elsewhere")


def hold(folder: Path, short: bool) -> Outcome:
    """All trials at once: they sleep."""
    places = (False, True) if os.geteuid() == 0 else (False,)
    kinds = product(("owner", "waiter"), JUMPS[:1] if short else JUMPS, (False, True), places)
    trials = [
        Trial(jumper, jump, is_killed, is_elsewhere, folder / str(number))
        for number, (jumper, jump, is_killed, is_elsewhere) in enumerate(kinds)
    ]
    outcome = Outcome(NAME, limit=LEASE_SECONDS + 2.0)
    for trial in trials:
        trial.folder.mkdir()
    owners = [trial.begin("owner") for trial in trials]
    while not all(trial.held for trial in trials):
        time.sleep(0.01)
    waiters = [trial.begin("waiter") for trial in trials]
    time.sleep(2 * SECONDS_BEFORE_JUMP)
    killed_at = time.monotonic()
    for trial, owner in zip(trials, owners, strict=True):
        if trial.is_killed:
            owner.kill()
    for trial, owner, waiter in zip(trials, owners, waiters, strict=True):
        codes = (owner.wait(), waiter.wait())
        outcome.trials += 1
        outcome.faults += 1
        outcome.blame(f"{trial}: {why}" for why in _problems(trial, codes))
        outcome.lost += len(trial.held) - 1 - trial.is_killed  # made again though its owner lived
        if trial.is_killed:
            outcome.recovered(trial.held[-1] - killed_at)
    return outcome


def _problems(trial: Trial, codes: tuple[int, int]) -> Iterator[str]:
    if codes != ((-9, 0) if trial.is_killed else (0, 0)):
        yield f"owner and waiter ended with {codes}"
    library = Library.load(Store(trial.runtime.root))
    yield from library.verify()
    if len(library.manifests) != 1:
        yield f"expected one artifact, found {len(library.manifests)}"
    if any(f"/{PREFIX}" in path for path in library.listing):
        yield "a claim stands"


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        found = hold(Path(sys.argv[1]), "--short" in sys.argv)
    print(json.dumps(asdict(found)))
