"""Disk: a store that runs full in the middle of every step, becomes read-only, or vanishes.

A run must end with one sentence and without a bug's traceback, leave no damaged artifact, and go on where it stopped
once there is space again.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tasks.library.lineage import Library
from tasks.storage.claims import PREFIX
from tasks.storage.store import Store
from tests.drills.outcome import Outcome, Skip
from tests.drills.workload import Fork, Workload, digests, manifests_of

FIRST_BYTES, LAST_BYTES, GROWTHS = 60_000, 32_000_000, 12
BUG = 70


def drill(workload: Workload, short: bool) -> Iterator[Outcome | Skip]:
    """A line each for a full, a read-only and a vanished store."""
    place = workload.folder / "disk"
    place.mkdir()
    with contextlib.ExitStack() as mounted:
        if not _mount(place, FIRST_BYTES):
            yield Skip("disk: full, read-only", "needs root, to mount a small file system")
        else:
            mounted.callback(subprocess.run, ["umount", "--lazy", str(place)], check=False)
            yield _fill(workload, place, 3 if short else GROWTHS)
            yield _forbid(workload, place)
    yield _vanish(workload, workload.folder / "vanishing")


def _mount(place: Path, size: int, *options: str) -> bool:
    words = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(place)]
    return os.geteuid() == 0 and subprocess.run(words, capture_output=True, check=False).returncode == 0


def _fill(workload: Workload, place: Path, growths: int) -> Outcome:
    """The disk is full, again and again a little later, until it suffices."""
    outcome = Outcome("disk: full, at every step in turn")
    factor = (LAST_BYTES / FIRST_BYTES) ** (1 / growths)
    for growth in range(growths):
        assert _mount(place, int(FIRST_BYTES * factor**growth), "remount")
        run = workload.run(str(place / "store"))
        clock = time.monotonic()
        code = run.wait()
        outcome.trials += 1
        outcome.faults += code != 0
        outcome.recovered(time.monotonic() - clock if code else 0.0)
        if code:
            outcome.blame(_unclear(code, workload.last_words(), ("No space left", "are free; free some space")))
        _compare(workload, place / "store", outcome, is_complete=code == 0)
        if code == 0:
            break
    _mount(place, LAST_BYTES * 4, "remount")
    _finish(workload, place / "store", outcome)
    shutil.rmtree(place / "store")
    return outcome


def _forbid(workload: Workload, place: Path) -> Outcome:
    """The disk is read-only from the start, and from the first extraction on."""
    outcome = Outcome("disk: read-only, from the start and in mid-run")
    (place / "store").mkdir()
    for moment in (lambda: True, lambda: _is_at(place / "store", "extract")):
        assert _mount(place, LAST_BYTES * 4, "remount")
        run = workload.run(str(place / "store"))
        _wait_for(run, moment)
        # what is being written is let go of: a read-only remount waits for nobody
        while run.poll() is None and not _mount(place, LAST_BYTES * 4, "remount", "ro"):
            time.sleep(0.001)
        outcome.trials += 1
        outcome.faults += 1
        code = run.wait()
        outcome.blame(_unclear(code, workload.last_words(), ("Read-only file system",)) if code else [])
        _compare(workload, place / "store", outcome, is_complete=code == 0)
    _mount(place, LAST_BYTES * 4, "remount", "rw")
    _finish(workload, place / "store", outcome)
    return outcome


def _vanish(workload: Workload, root: Path) -> Outcome:
    """The store is moved away while it is read and written, and later comes back."""
    outcome = Outcome("disk: the root vanishes in mid-run")
    for step in ("extract", "fuse", "train"):
        run = workload.run(str(root))
        _wait_for(run, lambda step=step: _is_at(root, step))
        if run.poll() is None:
            root.rename(root.with_name("away"))
            outcome.trials += 1
            outcome.faults += 1
            code = run.wait()
            words = ("no such artifact in", "No such file or directory", "missing")
            outcome.blame(_unclear(code, workload.last_words(), words) if code else [f"{step}: the run succeeded"])
            shutil.rmtree(root, ignore_errors=True)
            root.with_name("away").rename(root)
        _compare(workload, root, outcome, is_complete=False)
    _finish(workload, root, outcome)
    return outcome


def _is_at(root: Path, step: str) -> bool:
    return any(root.glob(f"{step}/*/{PREFIX}*"))


def _wait_for(run: Fork, happened: Callable[[], bool]) -> None:
    while run.poll() is None and not happened():
        time.sleep(0.002)


def _unclear(code: int, said: str, words: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with how a run ended: a bug's exit code, or none of the words."""
    if code == BUG or not said.startswith("error: "):
        yield f"ended with {code}: {said}"
    elif not any(word in said for word in words):
        yield f"expected one of {words}, found {said}"


def _compare(workload: Workload, root: Path, outcome: Outcome, *, is_complete: bool) -> None:
    """Whatever is published must be what an undisturbed run publishes."""
    outcome.blame(Library.load(Store(str(root))).verify())
    made = digests(manifests_of(root))
    outcome.wrong += sum(workload.expected.get(address) != files for address, files in made.items())
    outcome.lost += len(workload.expected.keys() - made.keys()) if is_complete else 0


def _finish(workload: Workload, root: Path, outcome: Outcome) -> None:
    clock = time.monotonic()
    code = workload.run(str(root)).wait()
    outcome.recovered(time.monotonic() - clock)
    outcome.blame([f"the last run ended with {code}: {workload.last_words()}"] if code else [])
    _compare(workload, root, outcome, is_complete=True)
