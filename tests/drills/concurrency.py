"""Concurrency: eight processes with the same work on one root, some of them killed, on a disk and over S3.

Each artifact must be committed once, every reader sees it whole or not at all, and nobody waits for the dead for
longer than a lease.
"""

import contextlib
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tasks.artifacts import Runtime, StoreError, TextsRef
from tasks.library.lineage import Library
from tasks.step import Output, step
from tasks.storage.store import Store, open_store
from tests.drills.outcome import Outcome
from tests.drills.workload import Fork, Workload, fork
from tests.e2e import servers

PROCESSES = 8
KILLED = 4
ARTIFACTS = 24
BODY_SECONDS = 0.1
LEASE_SECONDS = 2.0
BYTES = 300_000
SEED = 3
BUCKET = "drills"


@step(version=1)
def make(number: int, *, runtime: Runtime, out: Output) -> TextsRef:
    """A file that follows from the number, in as many pieces as a reader could catch it between."""
    with (out.dir / "data").open("wb") as stream:
        for _ in range(10):
            stream.write(bytes([number]) * (BYTES // 10))
            stream.flush()
            time.sleep(BODY_SECONDS / 10)
    return out.ref(TextsRef)


def drill(workload: Workload, short: bool) -> Iterator[Outcome]:
    """A line for a disk, one for S3."""
    yield _race("a disk", str(workload.folder / "shared"), workload, short)
    with servers.ministack(workload.folder / "shared-s3") as server:
        keys = {"AWS_ACCESS_KEY_ID": servers.KEY, "AWS_SECRET_ACCESS_KEY": servers.SECRET}
        before = dict(os.environ)
        os.environ |= {**keys, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": server.url}
        made = fork(lambda: Store(f"s3://{BUCKET}").fs.mkdir(BUCKET), workload.log)
        assert made.wait() == 0, workload.last_words()
        yield _race("S3", f"s3://{BUCKET}/shared", workload, short)
        os.environ.clear()
        os.environ |= before


def _race(where: str, root: str, workload: Workload, short: bool) -> Outcome:
    outcome = Outcome(f"concurrency: {PROCESSES} processes on {where}", limit=60.0)
    count = ARTIFACTS // 3 if short else ARTIFACTS
    chance, seen = random.Random(SEED), workload.folder / "seen"
    shutil.rmtree(seen, ignore_errors=True)
    seen.mkdir()

    def begin(number: int, role: str) -> Fork:
        act = _read_always if role == "reader" else _make_all
        return fork(
            lambda: act(root, workload.folder / f"cache-{where}-{number}", seen / str(number), count), workload.log
        )

    clock = time.monotonic()
    readers = [begin(100 + number, "reader") for number in range(2)]
    workers = [begin(number, "worker") for number in range(PROCESSES)]
    for number in chance.sample(range(PROCESSES), KILLED):
        time.sleep(chance.uniform(0.2, 0.8))
        workers[number].kill()
        outcome.faults += 1
    for number, worker in enumerate(workers):
        code = worker.wait()
        if code not in (0, -9):
            outcome.blame([f"worker {number} ended with {code}: {workload.last_words()}"])
    outcome.recovered(time.monotonic() - clock)
    (seen / "done").touch()
    for reader in readers:
        outcome.blame([f"a reader: {workload.last_words()}"] if reader.wait() else [])
    checker = fork(lambda: _check(root, workload.folder / "cache-check", seen, count), workload.log)
    outcome.blame([f"in the end: {workload.last_words()}"] if checker.wait() else [])
    outcome.trials = count
    outcome.lost = sum(len(set(owners)) - 1 for owners in _owners(seen).values())
    return outcome


def _runtime(root: str, cache: Path) -> Runtime:
    return Runtime(root=root, cache_dir=str(cache), lease_seconds=LEASE_SECONDS)


def _make_all(root: str, cache: Path, seen: Path, count: int) -> int:
    """Obtains all artifacts, in an order of its own; notes whose attempt it found."""
    runtime = _runtime(root, cache)
    numbers = list(range(count))
    random.Random(seen.name).shuffle(numbers)
    for number in numbers:
        _note(make.fn(number, runtime=runtime), runtime, seen)
    return 0


def _read_always(root: str, cache: Path, seen: Path, count: int) -> int:
    """Reads whatever is published, until all is done; a torn artifact or one of other bytes ends it."""
    runtime = _runtime(root, cache)
    refs = {n: TextsRef(step="make", fingerprint=make.fingerprint(n, runtime=runtime)) for n in range(count)}
    while not (seen.parent / "done").exists():
        for number, ref in refs.items():
            if open_store(runtime).manifest(ref) is None:
                continue
            data = (open_store(runtime).fetch(ref) / "data").read_bytes()
            assert data == bytes([number]) * BYTES, f"a torn artifact {number}: {len(data)} bytes"
            _note(ref, runtime, seen)
        time.sleep(0.05)
    return 0


def _note(ref: TextsRef, runtime: Runtime, seen: Path) -> None:
    manifest = open_store(runtime).manifest(ref)
    assert manifest is not None, f"{ref} was published and is gone"
    with seen.open("a") as stream:
        stream.write(json.dumps([ref.fingerprint, manifest.owner]) + "\n")


def _owners(seen: Path) -> dict[str, list[str]]:
    """The attempts that anybody saw, by fingerprint."""
    owners: dict[str, list[str]] = {}
    for file in seen.iterdir():
        for line in file.read_text().splitlines():
            with contextlib.suppress(ValueError):  # of a worker that was killed as it wrote
                fingerprint, owner = json.loads(line)
                owners.setdefault(fingerprint, []).append(owner)
    return owners


def _check(root: str, cache: Path, seen: Path, count: int) -> int:
    """The store in the end: whole, complete, and no claim of a process that lives."""
    library = Library.load(Store(root, cache_dir=str(cache)))
    problems = library.verify()
    if len(library.manifests) != count:
        problems.append(f"expected {count} artifacts, found {len(library.manifests)}")
    problems += [f"{path} stands" for path in library.listing if "/CLAIM." in path]
    if problems:
        raise StoreError("; ".join(problems[:3]))
    return 0
