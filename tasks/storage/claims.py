"""Who is computing an artifact right now: claims with a lease, so no work is done twice and nobody waits for the dead.

A claim is an object `CLAIM.<generation>` beside the artifact's manifest-to-be. Creating the next
generation is create-only, so a takeover has one winner. The owner rewrites its claim every third of the
lease; a waiter calls it dead when it has not changed for a whole lease *by the waiter's own clock*, so
clocks that differ or jump do no harm, or at once when the owner was a process of this host that is gone.
Claims only save work: should two owners ever compute the same artifact, the manifest still has one winner.
A claim names what its owner reads, so that garbage collection leaves that alone.
"""

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import psutil

from tasks.storage.objects import Objects

PREFIX = "CLAIM."
START_TOLERANCE_SECONDS = 2.0
"""A process's start is read in steps of its system's ticks, and on systems other than Linux by the clock."""


@dataclass
class Claim:
    """A held claim, released when its block ends. The renewing thread ends with it, or with the process."""

    store: Objects
    path: str
    owner: str
    lease_seconds: float
    inputs: list[str] = field(default_factory=list)
    beats: int = 0
    _released: threading.Event = field(default_factory=threading.Event)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def body(self) -> bytes:
        """The claim's JSON: a new one for every beat."""
        record = {"owner": self.owner, "beats": self.beats, "lease_seconds": self.lease_seconds, "inputs": self.inputs}
        return json.dumps(record | this_process()).encode()

    def keep(self) -> None:
        """Starts renewing in the background."""
        threading.Thread(target=self._renew, name=f"claim-{self.owner}", daemon=True).start()

    def _renew(self) -> None:
        while not self._released.wait(self.lease_seconds / 3):
            self.beats += 1
            with self._writing, contextlib.suppress(Exception):  # a lost beat costs at most a second computation
                if self._released.is_set() or not self._is_ours():
                    return  # released, or taken over while we slept: the manifest decides who was first
                self.store.write(self.path, self.body())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Lets others in; at the latest one lease from now, should the store not answer."""
        self._released.set()
        # The lock: a beat under way would bring the claim back. Suppressed: the result stands, the claim expires.
        with self._writing, contextlib.suppress(Exception):
            if self._is_ours():
                self.store.remove(self.path)

    def _is_ours(self) -> bool:
        return bool(claim_record(self.store.read(self.path)).get("owner") == self.owner)


class Claims:
    """One waiter's view of an artifact's claims; remembers when it last saw each of them change."""

    def __init__(
        self, store: Objects, address: str, owner: str, lease_seconds: float, inputs: list[str] | None = None
    ) -> None:
        self.store, self.address, self.owner, self.lease_seconds = store, address, owner, lease_seconds
        self.inputs = inputs or []
        self._seen: tuple[str, bytes, float] | None = None

    def are_free(self) -> bool:
        """Whether no other owner lives, as far as can be told without claiming."""
        latest = max(self.store.names(self.address, PREFIX), default=None)
        return latest is None or self._is_dead(latest)

    def acquire(self) -> Claim | None:
        """The claim, or None while another owner lives."""
        names = self.store.names(self.address, PREFIX)
        latest = max(names, default=None)
        if latest is not None and not self._is_dead(latest):
            return None
        generation = 0 if latest is None else int(latest.removeprefix(PREFIX)) + 1
        path = f"{self.address}/{PREFIX}{generation:06d}"
        claim = Claim(self.store, path, self.owner, self.lease_seconds, self.inputs)
        if not self.store.create(claim.path, claim.body()):
            return None
        for name in names:
            self.store.remove(f"{self.address}/{name}")
        claim.keep()
        return claim

    def acquire_from_silent(self) -> Claim | None:
        """The claim, once its holder has been silent for the lease; None as soon as that owner is known to live."""
        first = None
        while (claim := self.acquire()) is None:
            if (seen := self._seen) is not None:
                first = first or seen
                if seen[:2] != first[:2] or owner_state(claim_record(seen[1])) == "alive":
                    return None
            time.sleep(min(1.0, self.lease_seconds / 10))
        return claim

    def _is_dead(self, name: str) -> bool:
        body = self.store.read(f"{self.address}/{name}")
        if body is None:
            return False  # just released: look again
        if self._seen is None or self._seen[:2] != (name, body):
            self._seen = (name, body, time.monotonic())
        record = claim_record(body)
        waited = time.monotonic() - self._seen[2]
        lease = float(record.get("lease_seconds", self.lease_seconds))
        return owner_state(record) == "gone" or waited > lease


def this_process() -> dict[str, object]:
    """What tells this process from any other: host (boot and pid namespace included), pid, start time."""
    return {"host": _host(), "pid": os.getpid(), "started_after_boot": _start_of(psutil.Process())}


def owner_state(record: dict[str, Any]) -> Literal["alive", "gone", "unknown"]:  # Any: JSON
    """Whether the claim's owner still runs; unknown when it runs, or ran, on another host."""
    if record.get("host") != _host():
        return "unknown"
    try:
        process = psutil.Process(int(record["pid"]))
        drift = abs(_start_of(process) - float(record["started_after_boot"]))
        is_gone = drift > START_TOLERANCE_SECONDS or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return "gone"
    except (psutil.Error, KeyError, TypeError, ValueError):
        return "unknown"
    return "gone" if is_gone else "alive"


def _start_of(process: psutil.Process) -> float:
    """Seconds from the machine's boot to the process's start.

    On Linux psutil adds a boot time that moves with the clock: without it, a clock that is set made the living look
    like others that got their numbers.
    """
    booted = psutil.boot_time() if psutil.LINUX else 0.0
    return float(process.create_time() - booted)


def _host() -> str:
    parts = [socket.gethostname()]
    for path in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        try:
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text().strip())
        except OSError:
            continue
    return "|".join(parts)


def claim_record(body: bytes | None) -> dict[str, Any]:  # Any: JSON
    """What a claim says; empty when it is gone or unreadable."""
    try:
        record = json.loads(body or b"{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
