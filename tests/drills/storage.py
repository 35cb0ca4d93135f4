"""Storage faults: a step and a reader over S3, while the line to the server goes wrong at each of their requests.

A trial lets one thing go wrong from the n-th request on. A passing fault must be survived; a lasting one must end in a
sentence, in bounded time; once it is over, the same call must succeed, and a reader must find the very bytes.
"""

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.artifacts import Runtime, TextsRef
from tasks.running.transient import is_transient
from tasks.step import Output, step
from tasks.storage.store import Store, open_store
from tests.drills.lanes import begin_lane, watch
from tests.drills.outcome import Outcome, Skip
from tests.drills.proxy import FOR_EVER, Fault, Line, line_to
from tests.drills.workload import Workload
from tests.e2e import ceph, servers
from tests.e2e.processes import Service

BUCKET = "drills"
LEASE_SECONDS = 2.0
RETRIES = 3
REQUESTS = 12  # of a step and its reader together
BIG_BYTES = 200_000
OUTAGE_SECONDS = 3.0


@dataclass(frozen=True)
class Case:
    """A fault, at which requests, what it must come to (words of an error, or survival), and how soon.

    kills: the process of the server that dies, and is begun again `OUTAGE_SECONDS` later; tried where there is one.
    tries_patience: the client's, whatever the server; tried over the first one alone.
    """

    name: str
    fault: Fault
    error: str = ""
    limit: float = 60.0
    starts: tuple[int, ...] = tuple(range(REQUESTS))
    tries_patience: bool = False
    kills: str = ""


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
    Case("server killed in a request", Fault("server dies"), kills="server"),
    Case("server killed after its answer", Fault("server dies afterwards"), kills="server"),
    Case("gateway killed in a request", Fault("server dies"), kills="rgw"),
    Case("gateway killed after its answer", Fault("server dies afterwards"), kills="rgw"),
    Case("disk's daemon killed in a request", Fault("server dies"), limit=120, starts=(1, 5, 8), kills="osd.0"),
    Case("monitor killed in a request", Fault("server dies"), limit=120, starts=(4,), kills="mon.a"),
    Case("clock is off", Fault("answer", "", FOR_EVER, 403, "RequestTimeTooSkewed"), "TimeTooSkewed", starts=(0,)),
)  # fmt: skip
SHORT = ("answer lost, request done", "wrong byte received", "credentials expire", "server killed in a request")
_BODIES: list[str] = []  # of each time that the step's body ran, in this process


@step(version=1)
def keep(name: str, *, runtime: Runtime, out: Output) -> TextsRef:
    """Two files that follow from the name."""
    _BODIES.append(name)
    for file, data in contents(name).items():
        (out.dir / file).write_bytes(data)
    return out.ref(TextsRef)


def contents(name: str) -> dict[str, bytes]:
    """What the step makes of a name."""
    return {"big": (name * BIG_BYTES).encode()[:BIG_BYTES], "small": name.encode()}


def drill(workload: Workload, short: bool) -> Iterator[Outcome | Skip]:
    """A line per case, over each server that is there, side by side: most of it is waiting."""
    folder = workload.folder
    (folder / "c").mkdir()
    lanes = [
        begin_lane(
            "ministack", lambda: hold("ministack", servers.ministack(folder / "ministack"), folder, short), folder
        )
    ]
    if not short and ceph.is_installed():
        lanes.append(begin_lane("Ceph", lambda: hold("Ceph", ceph.radosgw(folder / "c"), folder, short), folder))
    yield from watch(lanes)
    if not short and not ceph.is_installed():
        yield Skip("storage: Ceph", f"needs {', '.join(ceph.PROGRAMS)}")


def hold(
    name: str, serving: contextlib.AbstractContextManager[servers.S3Server], folder: Path, short: bool
) -> Iterator[Outcome]:
    """Holds all cases over a server, in a process of its own, which s3fs fills with threads."""
    logging.disable(logging.CRITICAL)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": servers.KEY,
        "AWS_SECRET_ACCESS_KEY": servers.SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    kept: list[Kept] = []
    with serving as server, line_to(server.url) as line:
        os.environ["AWS_ENDPOINT_URL"] = line.url
        Store(f"s3://{BUCKET}").fs.mkdir(BUCKET)
        for case in CASES:
            if (short and case.name not in SHORT) or (case.kills and case.kills not in server.services):
                continue
            if case.tries_patience and name != "ministack":
                continue
            outcome = Outcome(f"storage, {name}: {case.name}", limit=case.limit)
            starts = case.starts[:1] if case.kills else case.starts[:3]
            for start in starts if short else case.starts:
                kept.append(Kept(f"{case.name}, {start}", folder / f"cache-{name}" / str(len(kept))))
                with killed_by(line, server.services.get(case.kills)):
                    is_made = _meet(replace(case.fault, after=start), case.error, line, kept[-1], outcome)
                    bodies = len(_BODIES)
                kept[-1].make()  # the same call succeeds, once the fault is over
                outcome.lost += is_made and len(_BODIES) > bodies
                outcome.lost += not kept[-1].is_whole("later")
            yield outcome
        lost = sum(not made.is_whole("end") for made in kept)
        yield Outcome(f"storage, {name}: all of it in the end", len(kept), lost=lost)


@contextlib.contextmanager
def killed_by(line: Line, service: Service | None) -> Iterator[None]:
    """While the block runs the line's outage kills the process, which comes back; in the end it is back."""
    returns: list[threading.Timer] = []

    def kill() -> None:
        assert service is not None
        service.kill()
        returns.append(threading.Timer(OUTAGE_SECONDS, service.begin))
        returns[-1].start()

    line.outage = kill
    yield
    for timer in returns:
        timer.join()


@dataclass(frozen=True)
class Kept:
    """A trial's artifact, on a root of its own, and the local caches of those who write and read it."""

    name: str
    caches: Path

    def runtime(self, machine: str) -> Runtime:
        """What a machine works with that has nothing yet."""
        root = f"s3://{BUCKET}/{self.caches.name}"
        return Runtime(root=root, cache_dir=str(self.caches / machine), lease_seconds=LEASE_SECONDS)

    def make(self) -> TextsRef:
        return keep.fn(self.name, runtime=self.runtime("writer"))

    def read(self, machine: str) -> dict[str, bytes]:
        runtime = self.runtime(machine)
        ref = TextsRef(step="keep", fingerprint=keep.fingerprint(self.name, runtime=runtime))
        return {path.name: path.read_bytes() for path in open_store(runtime).fetch(ref).iterdir()}

    def is_whole(self, machine: str) -> bool:
        """Whether a machine finds the very bytes."""
        return self.read(machine) == contents(self.name)


def _meet(fault: Fault, expected: str, line: Line, kept: Kept, outcome: Outcome) -> bool:
    """Makes and reads it while the fault lasts: whether that went well. Else it must fail in the expected words."""
    line.break_with(fault)
    clock = time.monotonic()
    error = _persist(kept.make) or _persist(lambda: kept.read("reader"))
    outcome.trials += 1
    outcome.faults += line.injected
    outcome.recovered(time.monotonic() - clock)
    if error is not None and not (expected and re.search(expected, str(error))):
        outcome.blame([f"at request {fault.after}: {error!r}"])
    line.break_with(None)
    return error is None


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
