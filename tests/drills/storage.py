"""Storage faults: a step and a reader over S3, while the line to the server goes wrong at each of their requests.

A trial lets one thing go wrong from the n-th request on. A passing fault must be survived; a lasting one must end in a
sentence, in bounded time; once it is over, the same call must succeed, and a reader must find the very bytes.
"""

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tasks.artifacts import Runtime, TextsRef
from tasks.running.transient import is_transient
from tasks.step import Output, step
from tasks.storage.store import Store, open_store
from tests.drills.outcome import Outcome, Skip
from tests.drills.proxy import FOR_EVER, Fault, Line, line_to
from tests.drills.workload import Workload, fork
from tests.e2e import ceph, servers

BUCKET = "drills"
LEASE_SECONDS = 2.0
RETRIES = 3
REQUESTS = 12  # of a step and its reader together
BIG_BYTES = 200_000


@dataclass(frozen=True)
class Case:
    """A fault, at which requests, what it must come to (words of an error, or survival), and how soon.

    tries_patience: the client's, whatever the server; tried over the first one alone.
    """

    name: str
    fault: Fault
    error: str = ""
    limit: float = 60.0
    starts: tuple[int, ...] = tuple(range(REQUESTS))
    tries_patience: bool = False


CASES = (
    Case("reset before the answer", Fault("reset", times=3)),
    Case("reset in the answer", Fault("reset in the answer", times=3)),
    Case("answer lost, request done", Fault("lost answer", times=3)),
    Case("500 three times", Fault("answer", times=3, status=500, code="InternalError")),
    Case("body cut, length right", Fault("cut", "GET", times=3)),
    Case("wrong byte received", Fault("wrong byte", r"GET .*/(MANIFEST|CLAIM|big|small)", times=2)),
    Case("wrong byte sent", Fault("wrong byte sent", "PUT", times=2)),
    Case("listings are empty", Fault("answer", r"GET .*list-type", FOR_EVER, 200, body=b"<ListBucketResult/>")),
    Case("503 SlowDown for 10 s", Fault("answer", seconds=10), starts=(0, 4, 8), tries_patience=True),
    Case("black hole for 30 s", Fault("black hole", seconds=30), limit=120, starts=(3,), tries_patience=True),
    Case("503 SlowDown for ever", Fault("answer", times=FOR_EVER), "SlowDown", 180, starts=(5,), tries_patience=True),
    Case(
        "writes denied",
        Fault("answer", "PUT", FOR_EVER, 403, "AccessDenied"),
        r"s3://.* expected to be allowed to write .* found .*AccessDenied.*; check the keys",
        starts=(0, 1, 2, 3),
    ),
    Case(
        "credentials expire",
        Fault("answer", "", FOR_EVER, 400, "ExpiredToken"),
        r"s3://.*: expected to be allowed to .* found .*ExpiredToken.*; check the keys",
    ),
    Case("clock is off", Fault("answer", "", FOR_EVER, 403, "RequestTimeTooSkewed"), "TimeTooSkewed", starts=(0,)),
)  # fmt: skip
SHORT = ("answer lost, request done", "wrong byte received", "credentials expire")


@step(version=1)
def keep(name: str, *, runtime: Runtime, out: Output) -> TextsRef:
    """Two files that follow from the name."""
    for file, data in contents(name).items():
        (out.dir / file).write_bytes(data)
    return out.ref(TextsRef)


def contents(name: str) -> dict[str, bytes]:
    """What the step makes of a name."""
    return {"big": (name * BIG_BYTES).encode()[:BIG_BYTES], "small": name.encode()}


def drill(workload: Workload, short: bool) -> Iterator[Outcome | Skip]:
    """A line per case, over each server that is there."""
    yield from _over("ministack", servers.ministack(workload.folder / "ministack"), workload, short)
    if short:
        return
    if not ceph.is_installed():
        yield Skip("storage: Ceph", f"needs {', '.join(ceph.PROGRAMS)}")
        return
    (workload.folder / "c").mkdir()
    yield from _over("Ceph", ceph.radosgw(workload.folder / "c"), workload, short)


def _over(
    name: str, server: contextlib.AbstractContextManager[str], workload: Workload, short: bool
) -> Iterator[Outcome]:
    found = workload.folder / f"storage-{name}.jsonl"
    with server as url:
        log = workload.folder / f"storage-{name}.log"
        child = fork(lambda: hold(name, url, workload.folder / f"cache-{name}", found, short), log)
        read = 0
        while child.poll() is None or (found.exists() and len(found.read_text().splitlines()) > read):
            lines = found.read_text().splitlines() if found.exists() else []
            yield from (Outcome(**json.loads(line)) for line in lines[read:])
            read = len(lines)
            time.sleep(0.1)
        if child.code:
            yield Outcome(f"storage, {name}", wrong=1, remark=log.read_text(errors="replace")[-200:])


def hold(name: str, server: str, cache: Path, found: Path, short: bool) -> int:
    """Holds all cases over a server in a process of its own, which s3fs fills with threads."""
    logging.disable(logging.CRITICAL)
    keys = {
        "AWS_ACCESS_KEY_ID": servers.KEY,
        "AWS_SECRET_ACCESS_KEY": servers.SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with line_to(server) as line:
        os.environ |= {**keys, "AWS_ENDPOINT_URL": line.url}
        Store(f"s3://{BUCKET}").fs.mkdir(BUCKET)
        for case in CASES:
            if (short and case.name not in SHORT) or (case.tries_patience and name != "ministack"):
                continue
            outcome = Outcome(f"storage, {name}: {case.name}", limit=case.limit)
            for start in case.starts[:3] if short else case.starts:
                _try(case, start, line, cache / f"{case.name}-{start}".replace(" ", "-"), outcome)
            with found.open("a") as stream:
                stream.write(json.dumps(asdict(outcome)) + "\n")
    return 0


def _try(case: Case, start: int, line: Line, cache: Path, outcome: Outcome) -> None:
    name = f"{case.name}, {start}"
    root = f"s3://{BUCKET}/{cache.name}"
    writer = Runtime(root=root, cache_dir=str(cache / "writer"), lease_seconds=LEASE_SECONDS)
    line.break_with(replace(case.fault, after=start))
    clock = time.monotonic()
    error = _persist(lambda: keep.fn(name, runtime=writer))
    error = error or _persist(lambda: _read(name, writer, cache / "reader"))
    outcome.trials += 1
    outcome.faults += line.injected
    outcome.recovered(time.monotonic() - clock)
    if error is not None and not (case.error and re.search(case.error, str(error))):
        outcome.blame([f"at request {start}: {error!r}"])
    line.break_with(None)
    keep.fn(name, runtime=writer)
    if _read(name, writer, cache / "later") != contents(name):
        outcome.lost += 1


def _read(name: str, writer: Runtime, cache: Path) -> dict[str, bytes]:
    """What a machine that has nothing yet finds."""
    runtime = writer.model_copy(update={"cache_dir": str(cache)})
    ref = TextsRef(step="keep", fingerprint=keep.fingerprint(name, runtime=runtime))
    folder = open_store(runtime).fetch(ref)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _persist(act: Callable[[], object]) -> Exception | None:
    """What it fails with, tried as often as Prefect tries a step."""
    for attempt in range(RETRIES + 1):
        try:
            act()
            return None
        except Exception as error:
            if attempt == RETRIES or not is_transient(error):
                return error
            time.sleep(2**attempt)
    raise AssertionError("unreachable")
