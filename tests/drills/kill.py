"""Kill: `llm-fuse run` ended by SIGKILL at random moments of every step, and begun again each time.

A trial begins the run, waits for a claim of the step that it is about, then a random share of that step's time, and
kills. In the end the store must hold what an undisturbed run's does, byte for byte; nothing that was committed before
a kill may have been made again; and beside it only debris may lie, which garbage collection takes without a rest.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tasks.claims import PREFIX, claim_record, owner_state
from tasks.garbage import find_garbage, sweep
from tasks.lineage import RUNS, Library, runs
from tasks.store import MANIFEST, Store
from tests.drills.outcome import Outcome
from tests.drills.workload import LEASE_SECONDS, WORKERS, Workload, digests, manifests_of

SITES = ("download", "build_corpus", "extract", "map_vocab", "align", "fuse", "train", "train", "evaluate", "report")
CAMPAIGNS = 6
SEED = 7
_LEAST_SECONDS = 0.05  # a step's claim is seen, at the earliest, so long after it was made


def drill(workload: Workload, short: bool) -> Iterator[Outcome]:
    """One line for the steps, one for the moments around them."""
    outcome = Outcome("kill: SIGKILL in every step, training included")
    chance = random.Random(SEED)
    for number in range(1 if short else CAMPAIGNS):
        sites = ("extract", "train") if short else SITES
        root = workload.folder / f"killed-{number}"
        Campaign(workload, Store(str(root)), outcome).run(sites, chance)
    yield outcome


@dataclass
class Campaign:
    """One store, brought to its end against many kills."""

    workload: Workload
    store: Store
    outcome: Outcome
    committed: dict[str, str] = field(default_factory=dict)  # owner by address, at the last kill

    @property
    def root(self) -> Path:
        return Path(self.store.base)

    def run(self, sites: tuple[str, ...], chance: random.Random) -> None:
        """Kills at every site in turn, lets the last run end, and compares."""
        spans = self._spans()
        kills, killed_at = 0, time.monotonic()
        for step in sites:
            run = self.workload.run(str(self.root))
            moment = chance.random()
            while run.poll() is None and not any(self.root.glob(f"{step}/*/{PREFIX}*")):
                time.sleep(0.002)
            self._note_recovery(killed_at if kills else None)
            end = time.monotonic() + moment * spans[step]
            while run.poll() is None and time.monotonic() < end:
                time.sleep(0.002)
            self.outcome.trials += 1
            if run.poll() is None:
                run.kill()
                kills += 1
                killed_at = time.monotonic()
            else:
                self.outcome.blame([f"a run ended with {run.code}: {self.workload.last_words()}"] if run.code else [])
            self._compare_with_last()
        code = self.workload.run(str(self.root)).wait()
        self._note_recovery(killed_at)
        self.outcome.faults += kills
        self.outcome.blame([f"the last run ended with {code}: {self.workload.last_words()}"] if code else [])
        self._compare_with_last()
        self.outcome.blame(self._problems(kills))

    def _spans(self) -> dict[str, float]:
        """How long each step's artifacts took together in the undisturbed run."""
        spans: dict[str, float] = dict.fromkeys(SITES, _LEAST_SECONDS)
        for manifest in manifests_of(self.workload.undisturbed).values():
            spans[manifest.step] = spans.get(manifest.step, 0.0) + manifest.seconds
        return spans

    def _note_recovery(self, since: float | None) -> None:
        if since is not None:
            self.outcome.recovered(time.monotonic() - since)

    def _compare_with_last(self) -> None:
        """What was committed at one kill must be there at the next, by the same attempt."""
        now = {address: manifest.owner for address, manifest in manifests_of(self.root).items()}
        self.outcome.lost += sum(now.get(address) != owner for address, owner in self.committed.items())
        self.committed = now

    def _problems(self, kills: int) -> Iterator[str]:
        """What is wrong with the finished store."""
        library = Library.load(self.store)
        yield from library.verify()
        made, expected = digests(library.manifests), self.workload.expected
        for address in sorted(made.keys() | expected.keys()):
            if made.get(address) != expected.get(address):
                yield f"{address} differs from the undisturbed run's"
        for path in library.listing:
            if f"/{PREFIX}" in path and owner_state(claim_record(self.store.read(path))) != "gone":
                yield f"{path} stands, of an owner that is not gone"
        yield from self._debris(library, kills)

    def _debris(self, library: Library, kills: int) -> Iterator[str]:
        """Garbage collection takes what killed runs left, and only that."""
        published = {(address, part) for address, m in library.manifests.items() for part in (MANIFEST, m.owner)}
        debris = {
            path
            for path in library.listing
            if path.split("/")[0] not in (RUNS, "tensorboard")
            and tuple(part for part in _address_and_part(path)) not in published
        }
        attempts = {"/".join(_address_and_part(path)) for path in debris if f"/{PREFIX}" not in path}
        attempts = {attempt for attempt in attempts if "/." not in attempt and "checkpoints" not in attempt}
        if len(attempts) > kills * WORKERS:
            yield f"{kills} kills of {WORKERS} workers left {len(attempts)} attempts"
        time.sleep(0.01)  # a file system's stamps are a little coarse
        keep = [ref for record in runs(self.store).values() for ref in record.refs]
        garbage = sweep(self.store, find_garbage(library, keep, min_age=0.0))
        if artifacts := [item.path for item in garbage if item.kind == "artifact"]:
            yield f"garbage collection took {artifacts[0]}"
        left = set(self.store.listing())
        if debris & left:
            yield f"garbage collection left {min(debris & left)}"
        if missing := library.listing.keys() - debris - left:
            yield f"garbage collection took {min(missing)}"


def _address_and_part(path: str) -> tuple[str, str]:
    parts = path.split("/")
    return "/".join(parts[:2]), parts[2] if len(parts) > 2 else ""



