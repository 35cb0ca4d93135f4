"""Corruption: one byte changed, the file cut, deleted or swapped with another, for each kind of stored file.

`verify` must name it, readers must refuse it by name, and a run that meets it recomputes or refuses, and never
trains on it.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.artifacts import Manifest, StoreError
from tasks.library.lineage import RUNS, Library, runs
from tasks.storage.store import MANIFEST, Store
from tests.drills.outcome import Outcome
from tests.drills.workload import Workload, digests

SEED = 11
MET_BY_A_RUN = ("build_corpus", "extract", "align", "fuse", "download")
"""Steps whose results the training is made from: a run is made to meet each of them damaged."""


def drill(workload: Workload, short: bool) -> Iterator[Outcome]:
    """A line for `verify` and readers, and one for runs that meet the damage."""
    root = workload.folder / "corrupted"
    shutil.copytree(workload.undisturbed, root)
    chance = random.Random(SEED)
    yield damage_every_kind(Store(str(root)), chance)
    yield meet_damage(workload, root, chance, MET_BY_A_RUN[3:4] if short else MET_BY_A_RUN)
    shutil.rmtree(root)


@dataclass(frozen=True)
class Damage:
    """A way to damage a file. `other` is another file of the store."""

    name: str
    act: Callable[[Path, Path, random.Random], None]


def _flip(file: Path, other: Path, chance: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def _cut(file: Path, other: Path, chance: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: chance.randrange(len(data))])


def _delete(file: Path, other: Path, chance: random.Random) -> None:
    file.unlink()


def _swap(file: Path, other: Path, chance: random.Random) -> None:
    mine, others = file.read_bytes(), other.read_bytes()
    file.write_bytes(others)
    other.write_bytes(mine)


DAMAGES = (Damage("flip", _flip), Damage("cut", _cut), Damage("delete", _delete), Damage("swap", _swap))


def damage_every_kind(store: Store, chance: random.Random) -> Outcome:
    """One file of every kind in every way, looked at by `verify` and by a reader."""
    outcome = Outcome("corruption: verify and readers", limit=10.0)
    expected = Library.load(store)
    for path, other in _one_of_each_kind(expected, chance):
        for damage in DAMAGES:
            files = [Path(store.base, name) for name in (path, other)]
            before = [file.read_bytes() for file in files]
            damage.act(*files, chance)
            if [file.exists() and file.read_bytes() for file in files] != before:
                outcome.trials += 1
                outcome.faults += 1
                clock = time.monotonic()
                outcome.blame(f"{damage.name} {path}: {why}" for why in _unnoticed(store, expected, path, damage.name))
                outcome.recovered(time.monotonic() - clock)
            for file, data in zip(files, before, strict=True):
                file.write_bytes(data)
    outcome.blame(Library.load(store).verify())
    return outcome


def _one_of_each_kind(library: Library, chance: random.Random) -> Iterator[tuple[str, str]]:
    """A path per step and file name, with another one of the same name where there is one."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for path in library.listing:
        if path.split("/")[0] in library_steps(library) or path.startswith(f"{RUNS}/"):
            kinds.setdefault((path.split("/")[0], Path(path).suffix or path.split("/")[-1]), []).append(path)
    everything = sorted(path for paths in kinds.values() for path in paths)
    for paths in kinds.values():
        path = chance.choice([p for p in paths if library.listing[p].bytes] or paths)
        others = [p for p in paths if p != path] or [p for p in everything if p != path]
        if library.listing[path].bytes:
            yield path, chance.choice(others)


def library_steps(library: Library) -> set[str]:
    """The steps that have published something."""
    return {manifest.step for manifest in library.manifests.values()}


def _unnoticed(store: Store, expected: Library, path: str, damage: str) -> Iterator[str]:
    """What escaped: nothing, when `verify` names the damaged file's artifact and no reader takes it."""
    address = "/".join(path.split("/")[:2])
    if path.startswith(f"{RUNS}/"):
        if damage != "delete" and not _is_same_record(store, expected):
            yield "the record of a run was believed"
        return
    library = Library.load(store)
    if library.damaged:
        if address not in library.damaged and damage != "swap":
            yield f"expected {address} to be named, found {'; '.join(library.damaged.values())}"
        if not set(library.damaged.values()) <= set(library.verify()):
            yield "verify said nothing"
        return
    if path.endswith(MANIFEST):
        if damage == "delete" and address not in library.manifests:
            return  # as if it had never been made: a run makes it again
        if library.manifests[address] != expected.manifests[address]:
            yield "a manifest that says something else was believed"
        return
    if not any(problem.startswith(address) for problem in library.verify()):
        yield "verify said nothing"
    try:
        store.fetch(library.manifests[address].ref)
        yield "a reader took it"
    except StoreError as error:
        if address not in str(error):
            yield f"a reader refused it without its name: {error}"


def _is_same_record(store: Store, expected: Library) -> bool:
    try:
        return all(record.name == "drill" and record.refs for record in runs(store).values())
    except StoreError:
        return True


def meet_damage(workload: Workload, root: Path, chance: random.Random, steps: tuple[str, ...]) -> Outcome:
    """Runs that find what they need damaged: the step's results are there, all that was made from them isn't."""
    outcome = Outcome("corruption: runs that meet it")
    for step in steps:
        for damage in DAMAGES[:2] if step != "fuse" else DAMAGES:
            library = Library.load(Store(str(root)))
            manifest = chance.choice([m for m in library.manifests.values() if m.step == step and _trains(library, m)])
            store = Store(str(root))
            for ref in library.descendants(manifest.ref):
                store.withdraw(library.manifests[ref.address])
            fact = max(manifest.files.values(), key=lambda fact: fact.bytes)
            file = root / manifest.ref.address / fact.path
            others = [path for path in root.glob(f"{step}/*/*/{file.name}") if path != file]
            damage.act(file, chance.choice(others or [root / manifest.ref.address / MANIFEST]), chance)
            outcome.trials += 1
            outcome.faults += 1
            outcome.blame(f"{damage.name} {step}: {why}" for why in _answer(workload, root, step))
            outcome.recovered(_recompute(workload, root, outcome))
    return outcome


def _trains(library: Library, manifest: Manifest) -> bool:
    """Whether the training is made from it: from the held-out text it isn't."""
    return any(ref.step == "train" for ref in library.descendants(manifest.ref))


def _answer(workload: Workload, root: Path, step: str) -> Iterator[str]:
    """A run must refuse in one sentence that names what is damaged, and before it trains."""
    code = workload.run(str(root)).wait()
    if code not in (1, 2):
        yield f"expected the run to refuse, found exit code {code}"
    elif f"{step}/" not in workload.last_words() or "delete the folder" not in workload.last_words():
        yield f"refused without its name: {workload.last_words()}"
    if any(root.glob(f"train/*/{MANIFEST}")):
        yield "it was trained on"


def _recompute(workload: Workload, root: Path, outcome: Outcome) -> float:
    """Does what the message says, deletes the folder, and runs again; the seconds that it took."""
    clock = time.monotonic()
    for problem in Library.load(Store(str(root))).verify():
        shutil.rmtree(root / "/".join(problem.split(":")[0].split("/")[:2]), ignore_errors=True)
    code = workload.run(str(root)).wait()
    outcome.blame([f"the repair ended with {code}: {workload.last_words()}"] if code else [])
    library = Library.load(Store(str(root)))
    outcome.wrong += digests(library.manifests) != workload.expected
    return time.monotonic() - clock
