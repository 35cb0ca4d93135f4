"""What no kept run reaches, and how it is removed beside running flows."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tasks.artifacts import Manifest, Ref, StoreError
from tasks.library.lineage import ADDRESS, RUNS, Library, RunRecord, runs
from tasks.library.retention import Retention, age_of
from tasks.storage.claims import PREFIX as CLAIM
from tasks.storage.claims import claim_record, owner_state
from tasks.storage.objects import Entry, Upload
from tasks.storage.partial import KEPT_SECONDS, PARTIAL
from tasks.storage.store import MANIFEST, Store
from tasks.training.checkpoints import CHECKPOINTS

MIN_AGE_SECONDS = 3600.0
_STRAY = re.compile(rf"\.?probe-[0-9a-f]{{32}}(\.[0-9a-f]{{8}})?|{RUNS}/\.[^/]+\.[0-9a-f]{{8}}")
"""What a killed process leaves outside artifacts: a probe, the temporary file of a record."""

_RESUMED: dict[str, Literal["checkpoint", "part"]] = {CHECKPOINTS: "checkpoint", PARTIAL: "part"}


@dataclass(frozen=True)
class Garbage:
    """One thing that may go: its path below the root, its bytes (0 for an upload: unknown), its age in seconds.

    artifact: a whole one that no kept run reaches. attempt: a folder or file that no manifest names. claim: of a
    dead owner. checkpoint, part: of a training (another artifact) that nobody went on with for a week, or that was
    published. upload: an unfinished multipart upload. stray: a temporary object of a killed process. run: the record
    of one that is no longer kept.
    """

    path: str
    kind: Literal["artifact", "attempt", "checkpoint", "part", "claim", "upload", "stray", "run"]
    bytes: int
    age: float
    manifest: Manifest | None = field(default=None, repr=False)
    upload: Upload | None = field(default=None, repr=False)


@dataclass
class _Folder:
    """An artifact's folder as it was listed: entries by the name directly below it."""

    manifest: Manifest | None
    parts: dict[str, list[Entry]] = field(default_factory=dict)

    def newest(self, names: Iterable[str]) -> float:
        return max((e.modified for name in names for e in self.parts.get(name, [])), default=0.0)

    def total(self, names: Iterable[str]) -> int:
        return sum(e.bytes for name in names for e in self.parts.get(name, []))

    @property
    def published(self) -> list[str]:
        return [] if self.manifest is None else [MANIFEST, self.manifest.owner]


def find_expired(library: Library, records: Mapping[str, RunRecord], retention: Retention) -> list[Garbage]:
    """The records of runs that are no longer kept, in order of their start."""
    now = library.store.clock()
    return [
        Garbage(f"{RUNS}/{run_id}.json", "run", 0, age_of(record, now))
        for run_id, record in retention.expired(records, library, now).items()
    ]


def find_garbage(library: Library, keep: Iterable[Ref], min_age: float = MIN_AGE_SECONDS) -> list[Garbage]:
    """Everything that `keep` and its ancestors don't need and nobody is working on, in path order.

    Kept besides: what is younger than `min_age` seconds (by the store's clock), what lies beside a live claim,
    what live claims name as inputs, and the ancestors of all these. Foreign files below the root are never listed.
    Raises `StoreError` naming the manifests that can't be read: nobody knows what they need.
    """
    _refuse_damage(library)
    now = library.store.clock()
    folders = _folders(library)
    live = _live_claims(library.store, folders, now, min_age)
    young = [f.manifest.ref for f in folders.values() if f.manifest and now - f.newest(f.published) < min_age]
    reached = library.reachable([*keep, *young, *(ref for inputs in live.values() for ref in inputs)])
    found = [Garbage(p, "stray", e.bytes, now - e.modified) for p, e in library.listing.items() if _STRAY.fullmatch(p)]
    for address, folder in folders.items():
        if address not in live:
            found.extend(_unneeded(address, folder, address in reached, now))
    for upload in library.store.unfinished_uploads():
        match = ADDRESS.fullmatch(upload.path)
        if match and match["address"] not in live:
            found.append(Garbage(upload.path, "upload", 0, now - upload.started, upload=upload))
    return sorted((item for item in found if item.age >= min_age), key=lambda item: item.path)


def sweep(store: Store, garbage: Iterable[Garbage]) -> list[Garbage]:
    """Removes it and returns what was removed: less than was asked where somebody has come to need it meanwhile."""
    # Claims first: one found later is somebody at work. Then runs: one that is kept must not miss what it names.
    ordered = sorted(garbage, key=lambda item: {"claim": 0, "run": 1}.get(item.kind, 2))
    before = [item for item in ordered if item.kind in ("claim", "run")]
    removed = [item for item in before if _remove(store, item)]
    rest = ordered[len(before) :]
    artifacts = {item.path for item in rest if item.kind == "artifact"}
    needed = _needed_by_now(store, artifacts) if artifacts else set()
    return removed + [item for item in rest if item.path not in needed and _remove(store, item)]


def _needed_by_now(store: Store, condemned: set[str]) -> set[str]:
    """Addresses that something reaches: a run, a live claim, or an artifact that stays, all of them read anew."""
    library = Library.load(store)
    _refuse_damage(library)
    live = _live_claims(store, _folders(library), store.clock(), min_age=0.0)
    kept = [ref for record in runs(store).values() for ref in record.refs]
    stays = [manifest.ref for address, manifest in library.manifests.items() if address not in condemned]
    return library.reachable([*kept, *stays, *(ref for inputs in live.values() for ref in inputs)])


def _refuse_damage(library: Library) -> None:
    if library.damaged:
        raise StoreError(
            f"garbage: expected manifests that can be read, found {len(library.damaged)} that can't and whose needs "
            f"nobody knows; mend or remove them first: {'; '.join(library.damaged.values())}"
        )


def _folders(library: Library) -> dict[str, _Folder]:
    folders: dict[str, _Folder] = {}
    for path, entry in library.listing.items():
        if match := ADDRESS.fullmatch(path):
            address, name = match["address"], match["rest"].split("/")[0]
            folder = folders.setdefault(address, _Folder(library.manifests.get(address)))
            folder.parts.setdefault(name, []).append(entry)
    return folders


def _live_claims(store: Store, folders: dict[str, _Folder], now: float, min_age: float) -> dict[str, list[Ref]]:
    """Addresses that somebody works on, each with what it reads."""
    live: dict[str, list[Ref]] = {}
    for address, folder in folders.items():
        for name in (name for name in folder.parts if name.startswith(CLAIM)):
            body = store.read(f"{address}/{name}")
            if body is None:  # released since the listing: what it made is as good as claimed
                mark = store.read(f"{address}/{MANIFEST}")
                live.setdefault(address, []).extend([] if mark is None else Manifest.from_json(mark, address).inputs)
                continue
            record = claim_record(body)
            state = owner_state(record)
            lease = float(record.get("lease_seconds", 0.0))
            is_fresh = now - folder.newest([name]) <= max(min_age, 2 * lease)
            if state == "alive" or (state == "unknown" and is_fresh):
                inputs = [str(used).split("/") for used in record.get("inputs", [])]
                live.setdefault(address, []).extend(Ref(step=step, fingerprint=mark) for step, mark in inputs)
    return live


def _unneeded(address: str, folder: _Folder, is_reached: bool, now: float) -> Iterator[Garbage]:
    if folder.manifest is not None and not is_reached:
        age = now - folder.newest(folder.published)
        yield Garbage(address, "artifact", folder.total(folder.published), age, manifest=folder.manifest)
    for name in folder.parts:
        if name and name not in (MANIFEST, *folder.published):
            age = now - folder.newest([name])
            if name in _RESUMED and folder.manifest is None and age < KEPT_SECONDS:
                continue  # somebody may still go on from them
            yield Garbage(f"{address}/{name}", _kind_of(name), folder.total([name]), age)


def _kind_of(name: str) -> Literal["attempt", "checkpoint", "part", "claim"]:
    if name.startswith(CLAIM):
        return "claim"
    return _RESUMED.get(name, "attempt")


def _remove(store: Store, item: Garbage) -> bool:
    if item.upload is not None:
        store.abort_upload(item.upload)
        return True
    if item.kind in ("claim", "stray", "run"):
        store.remove(item.path)
        return True
    match = ADDRESS.fullmatch(f"{item.path}/")
    assert match is not None, f"{item.path} is not below an artifact's address"
    address, attempt = match["address"], match["rest"].rstrip("/")
    data = store.read(f"{address}/{MANIFEST}")
    standing = None if data is None else Manifest.from_json(data, address)
    if store.names(address, CLAIM) or (standing is not None and attempt == standing.owner):
        return False
    if item.manifest is None:
        store.delete(item.path)
    elif standing is None or standing.owner != item.manifest.owner:
        return False
    else:
        store.withdraw(standing)
    return True
