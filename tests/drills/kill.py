"""Kill: `llm-fuse run` ended by SIGKILL at random moments of every step, and begun again each time.

A trial begins the run, waits for a claim of the step that it is about, then a random share of that step's time, and
kills. In the end the store must hold what an undisturbed run's does, byte for byte; nothing that was committed before
a kill may have been made again; and beside it only debris may lie, which garbage collection takes without a rest.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tasks.library.garbage import find_garbage, sweep
from tasks.library.lineage import RUNS, Library, runs
from tasks.storage.claims import PREFIX, claim_record, owner_state
from tasks.storage.store import MANIFEST, Store
from tests.drills.outcome import Outcome
from tests.drills.workload import LIMIT_SECONDS, WORKERS, Fork, Workload, digests, manifests_of

SITES = ("download", "build_corpus", "extract", "map_vocab", "align", "fuse", "train", "train", "evaluate", "report")
CAMPAIGNS = 6
SEED = 7
_STEP_SECONDS = 0.3


def drill(workload: Workload, short: bool) -> Iterator[Outcome]:
    """One line: 60 kills, six at each of the sites."""
    outcome = Outcome("kill: SIGKILL in every step, training included")
    chance = random.Random(SEED)
    number = 0
    for _ in range(1 if short else CAMPAIGNS):
        left = ("extract", "train") if short else SITES
        while left:  # a run that ended before it could be killed: the rest is done on another store
            root = workload.folder / f"killed-{number}"
            kills = Campaign(workload, Store(str(root)), outcome, chance).run(left)
            left = left[max(1, kills) :]
            shutil.rmtree(root)
            number += 1
    yield outcome


@dataclass
class Campaign:
    """One store, brought to its end against many kills."""

    workload: Workload
    store: Store
    outcome: Outcome
    chance: random.Random
    kills: int = 0
    committed: dict[str, str] = field(default_factory=dict)  # owner by address, when the last run ended
    orphans: dict[Path, bytes] = field(default_factory=dict)  # claims that nobody has taken over yet
    began: float = 0.0  # when the run began; 0 once all orphans are taken over

    @property
    def root(self) -> Path:
        return Path(self.store.base)

    def run(self, sites: tuple[str, ...]) -> int:
        """How many of the sites saw a kill, one after the other, before the last run could end; then compares."""
        spans = self._spans()
        ended = False
        for step in sites:
            run = self._begin()
            steps = SITES[SITES.index(step) :]  # with those after it: it may be done, as some go on side by side
            known = self._marks(steps)
            self._watch(run, lambda s=steps, known=known: self._is_claimed(s) or self._marks(s) != known)
            end = time.monotonic() + self.chance.random() * spans[step]
            self._watch(run, lambda end=end: time.monotonic() > end)
            ended = run.poll() is not None
            if ended:
                self._blame_end(run)
                break
            run.kill()
            self.kills += 1
            self._compare_with_last()
        if not ended:
            run = self._begin()
            self._watch(run, lambda: False)
            self._blame_end(run)
        self._compare_with_last()
        self.outcome.trials += self.kills
        self.outcome.faults += self.kills
        self.outcome.blame(self._problems())
        return self.kills

    def _begin(self) -> Fork:
        self.orphans = {path: path.read_bytes() for path in self.root.glob(f"*/*/{PREFIX}*")}
        self.began = time.monotonic()
        return self.workload.run(str(self.root))

    def _watch(self, run: Fork, happened: Callable[[], bool]) -> None:
        """Waits for it, or for the run's end; notes when the claims that a kill left have been taken over."""
        while run.poll() is None and not happened():
            self.orphans = {path: body for path, body in self.orphans.items() if _bytes_of(path) == body}
            if not self.orphans and self.began:
                self.outcome.recovered(time.monotonic() - self.began if self.kills else 0.0)
                self.began = 0.0
            assert not self.began or time.monotonic() < self.began + LIMIT_SECONDS, (
                f"{min(self.orphans)} is not taken over"
            )
            time.sleep(0.002)

    def _blame_end(self, run: Fork) -> None:
        self.outcome.blame([f"a run ended with {run.code}: {self.workload.last_words()}"] if run.code else [])

    def _is_claimed(self, steps: tuple[str, ...]) -> bool:
        """By a run that lives: what a killed one left is an orphan until it is taken over."""
        claims = (path for step in steps for path in self.root.glob(f"{step}/*/{PREFIX}*"))
        return any(path not in self.orphans for path in claims)

    def _marks(self, steps: tuple[str, ...]) -> set[Path]:
        return {path for step in steps for path in self.root.glob(f"{step}/*/{MANIFEST}")}

    def _spans(self) -> dict[str, float]:
        """The time within which each step's kill falls: a training's own; others are quick once all is imported."""
        made = manifests_of(self.workload.undisturbed).values()
        train = sum(manifest.seconds for manifest in made if manifest.step == "train")
        return {**dict.fromkeys(SITES, _STEP_SECONDS), "train": train}

    def _compare_with_last(self) -> None:
        """What was committed at one kill must be there at the next, by the same attempt."""
        now = {address: manifest.owner for address, manifest in manifests_of(self.root).items()}
        self.outcome.lost += sum(now.get(address) != owner for address, owner in self.committed.items())
        self.committed = now

    def _problems(self) -> Iterator[str]:
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
        yield from self._debris(library)

    def _debris(self, library: Library) -> Iterator[str]:
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
        if len(attempts) > self.kills * WORKERS:
            yield f"{self.kills} kills of {WORKERS} workers left {len(attempts)} attempts"
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


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _address_and_part(path: str) -> tuple[str, str]:
    parts = path.split("/")
    return "/".join(parts[:2]), parts[2] if len(parts) > 2 else ""
