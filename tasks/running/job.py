"""One attempt to obtain one artifact: what its body writes to, and whether somebody else is at it already."""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tasks.artifacts import Manifest, Ref, Runtime, refs_in
from tasks.running.progress import Event, EventState, tell
from tasks.running.stopping import check_stopped
from tasks.storage.claims import Claims
from tasks.storage.store import Store

K = TypeVar("K", bound=Ref)


@dataclass
class Output:
    """What a step's body writes to: a private folder, facts for lineage, and its progress."""

    dir: Path
    step: str
    fingerprint: str
    label: str
    pins: Mapping[str, object] = field(default_factory=dict)  # what the step's `pin` found, as it was hashed
    facts: dict[str, object] = field(default_factory=dict)
    afterwards: list[Callable[[], None]] = field(default_factory=list)  # called once the artifact is published

    def ref(self, kind: type[K], **fields: object) -> K:
        """The ref that the body returns."""
        return kind.model_validate({"step": self.step, "fingerprint": self.fingerprint, **fields})

    @property
    def address(self) -> str:
        """The folder of the artifact to be, below the store's root."""
        return f"{self.step}/{self.fingerprint}"

    def progress(self, done: int, total: int, unit: str, message: str = "") -> None:
        """Tells how far the step is. Raises `Stopped` once the run has been told to end."""
        check_stopped()
        tell(Event(self.step, self.label, "work", done=done, total=total, unit=unit, message=message))


@dataclass(frozen=True)
class Job:
    """One attempt to obtain one artifact."""

    store: Store
    ref: Ref
    arguments: dict[str, Any]  # Any: specs, refs and plain data
    pins: dict[str, object]
    runtime: Runtime
    label: str
    owner: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def tell(self, state: EventState, **details: Any) -> None:  # Any: the fields of an event
        """Tells what happened to it."""
        tell(Event(self.ref.step, self.label, state, **details))


@contextlib.contextmanager
def find_or_claim(job: Job, place: Callable[[], AbstractContextManager[Runtime]]) -> Iterator[Manifest | Runtime]:
    """The artifact's manifest; or where to make it, and the right to while the block runs. Waits while others do.

    place: what is taken besides the claim, and before it: who waits for a device claims nothing that others could
    make, and who waits for others keeps no device from them.
    """
    inputs = sorted({ref.address for ref in refs_in(job.arguments)})
    claims = Claims(job.store, job.ref.address, job.owner, job.runtime.lease_seconds, inputs)
    told = False
    with contextlib.ExitStack() as held:
        while (manifest := job.store.manifest(job.ref)) is None:
            check_stopped()
            if claims.are_free():
                runtime = held.enter_context(place())
                if (claim := claims.acquire()) is not None:
                    held.enter_context(claim)
                    manifest = job.store.manifest(job.ref)  # committed between our look and our claim?
                    break
                held.close()  # somebody was faster
            if not told:
                job.tell("waiting", message="somebody else computes it")
                told = True
            time.sleep(min(1.0, job.runtime.lease_seconds / 10))
        yield runtime if manifest is None else manifest
