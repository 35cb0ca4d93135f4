"""What the manifests of a store tell together: what came from what, whether it is whole, and which runs are kept."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.artifacts import AnyRef, CorpusRef, Manifest, Ref, ShardRef, StoreError
from tasks.corpora.documents import list_shards
from tasks.sealed import is_intact, seal
from tasks.storage.objects import Entry
from tasks.storage.store import MANIFEST, Store

ADDRESS = re.compile(r"(?P<address>[a-z][a-z0-9_]*/[0-9a-f]{32})/(?P<rest>.*)")
"""How the path of everything that belongs to an artifact begins; nothing else below a root is ours to judge."""
RUNS, ELSEWHERE = "runs", "lineage"
_NOTE = re.compile(rf"{ELSEWHERE}/[a-z][a-z0-9_]*/[0-9a-f]{{32}}\.json")
T = TypeVar("T")
U = TypeVar("U")
PARALLEL_READS = 16


class RunRecord(BaseModel):
    """One run that is kept: what was asked for and the refs that it came to. Its refs and their ancestors stay.

    pinned: kept whatever its age, as what was published is.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    started_at: str
    recipe: dict[str, Any]  # Any: the recipe's JSON
    refs: list[AnyRef]
    pinned: bool = False


def record_run(store: Store, record: RunRecord, *, run_id: str) -> None:
    """Keeps a run. Writing again replaces: note at the start what a plan knows, at the end what came out."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run_id):
        raise ValueError(f"run id: expected letters, digits, '.', '_' and '-', found {run_id!r}")
    store.write(f"{RUNS}/{run_id}.json", seal(record.model_dump_json(indent=1)))


def forget_run(store: Store, run_id: str) -> None:
    """Stops keeping a run; what only it reached becomes garbage."""
    store.remove(f"{RUNS}/{run_id}.json")


def runs(store: Store) -> dict[str, RunRecord]:
    """The kept runs by id, oldest first. Raises `StoreError` for a record that can't be read: it may keep anything."""
    names = [name for name in store.names(RUNS) if name.endswith(".json") and not name.startswith(".")]
    found = {}
    for name, data in zip(names, _in_parallel(store.read, [f"{RUNS}/{name}" for name in names]), strict=True):
        if data is None:  # forgotten since the listing
            continue
        try:
            found[name.removesuffix(".json")] = RunRecord.model_validate_json(data)
        except ValidationError as error:
            raise StoreError(f"{RUNS}/{name}: expected the record of a run, found something else; remove it") from error
        if not is_intact(data):
            raise StoreError(f"{RUNS}/{name}: the record of a run differs from its seal; remove it, or run again")
    return dict(sorted(found.items(), key=lambda item: item[1].started_at))


def note_elsewhere(store: Store, manifest: Manifest) -> None:
    """Keeps the manifest of an artifact that lies in another root, for lineage alone: no step takes it for a result."""
    store.write(f"{ELSEWHERE}/{manifest.ref.address}.json", manifest.to_json())


def read_known(store: Store, ref: Ref) -> Manifest | None:
    """The manifest of an artifact that is here, or what was noted of one elsewhere; None for neither."""
    manifest = store.manifest(ref)
    if manifest is not None:
        return manifest
    noted = store.read(f"{ELSEWHERE}/{ref.address}.json")
    return None if noted is None else Manifest.from_json(noted, ref.address)


@dataclass(frozen=True)
class Library:
    """All artifacts of a store, by address, and the listing they were found in: a snapshot.

    elsewhere: what was noted of artifacts that lie in other roots.
    damaged: addresses whose manifest, or note, can't be read: torn, altered, too new; each with a sentence on it.
    """

    store: Store
    manifests: dict[str, Manifest]
    listing: dict[str, Entry]
    elsewhere: dict[str, Manifest] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, store: Store) -> Self:
        """Reads every manifest below the root; those that can't be read are in `damaged`."""
        listing = store.listing()
        marks = [path for path in listing if (m := ADDRESS.fullmatch(path)) and m["rest"] == MANIFEST]
        notes = [path for path in listing if _NOTE.fullmatch(path)]
        manifests, torn = _read_manifests(store, {path: path.removesuffix(f"/{MANIFEST}") for path in marks})
        noted = {path: path.removeprefix(f"{ELSEWHERE}/").removesuffix(".json") for path in notes}
        wanted = {path: address for path, address in noted.items() if address not in manifests | torn}
        elsewhere, torn_notes = _read_manifests(store, wanted)
        return cls(store, manifests, listing, elsewhere, torn | torn_notes)

    @cached_property
    def known(self) -> dict[str, Manifest]:
        """The manifests of all artifacts that something is known of, here or elsewhere."""
        return self.manifests | self.elsewhere

    def ancestors(self, ref: Ref) -> list[Ref]:
        """What the artifact was made from, nearest first, each once; one that is gone from the store is in it too.

        A shard stands for its corpus.
        """
        return self._closure([ref], self._inputs)[1:]

    def descendants(self, ref: Ref) -> list[Ref]:
        """What was made from the artifact, nearest first, each once.

        Of a corpus that is what used any of its shards; of a shard, what used that content in any corpus.
        """
        if isinstance(ref, ShardRef):
            return self._closure(self._users_of_content.get(ref.digest, []), self._users)
        return self._closure([ref], self._users)[1:]

    def reachable(self, refs: Iterable[Ref]) -> set[str]:
        """Addresses of the refs and of all their ancestors."""
        return {ref.address for ref in self._closure(refs, self._inputs)}

    def find(self, text: str) -> Ref:
        """The artifact meant by `step/fingerprint`, by a path into its folder, or by the first digits of a fingerprint.

        Raises `ValueError` naming the candidates when none or several fit, `StoreError` for one that is damaged.
        """
        parts = [part for part in text.strip().split("/") if part]
        pairs = list(itertools.pairwise(parts)) or [("", part) for part in parts]
        fitting = [
            address
            for address in self.manifests | self.damaged
            for made_by, fingerprint in [address.split("/")]
            if any(step in ("", made_by) and fingerprint.startswith(digits) for step, digits in pairs)
        ]
        if len(fitting) == 1:
            if fitting[0] in self.damaged:
                raise StoreError(self.damaged[fitting[0]])
            return self.manifests[fitting[0]].ref
        if fitting:
            listed = ", ".join(sorted(fitting)[:8]) + (", ..." if len(fitting) > 8 else "")
            raise ValueError(f"{text!r} fits {len(fitting)} artifacts: {listed}; give more digits")
        steps = ", ".join(sorted({manifest.step for manifest in self.manifests.values()})) or "none"
        raise ValueError(
            f"{text!r}: expected step/fingerprint, a path into an artifact or the first digits of a fingerprint, "
            f"found none of {len(self.manifests)} artifacts in {self.store.root} (steps: {steps})"
        )

    def verify(self, refs: Iterable[Ref] | None = None) -> list[str]:
        """One sentence per missing artifact or file, damaged manifest and file whose bytes differ; empty when whole.

        Checks the refs and all their ancestors, or the whole store; reads every byte. What is known to lie elsewhere
        isn't missing.
        """
        kept = [manifest.ref for manifest in self.manifests.values()] if refs is None else list(refs)
        reached = self._closure(kept, self._inputs)
        torn = self.damaged if refs is None else self.damaged.keys() & {ref.address for ref in reached}
        problems = [self.damaged[address] for address in sorted(torn)]
        there = self.known.keys() | self.damaged.keys()
        problems += [f"{ref.address}: not in {self.store.root}" for ref in reached if ref.address not in there]
        whole = [self.manifests[ref.address] for ref in reached if ref.address in self.manifests]
        for found in _in_parallel(self.store.damage, whole):
            problems.extend(found)
        return problems

    # ---- the graph ---------------------------------------------------------------------------------

    def _inputs(self, ref: Ref) -> list[Ref]:
        manifest = self.known.get(ref.address)
        return [] if manifest is None else list(manifest.inputs)

    def _users(self, ref: Ref) -> list[Ref]:
        direct = self._users_by_address.get(ref.address, [])
        if not isinstance(ref, CorpusRef):
            return direct
        # what read a shard is named after the corpus in which it stood then, and this one may hold the same shard
        return direct + [user for digest in self._contents(ref) for user in self._users_of_content.get(digest, [])]

    def _contents(self, corpus: CorpusRef) -> list[str]:
        """The digests of its shards; empty where the list of them is gone from the store."""
        try:
            return [shard.digest for shard in list_shards(self.store, corpus)]
        except StoreError:
            return []

    @cached_property
    def _users_by_address(self) -> dict[str, list[Ref]]:
        return self._index(lambda ref: ref.address)

    @cached_property
    def _users_of_content(self) -> dict[str, list[Ref]]:
        return self._index(lambda ref: ref.identity)

    def _index(self, key: Callable[[Ref], str]) -> dict[str, list[Ref]]:
        index: dict[str, list[Ref]] = {}
        for manifest in self.known.values():
            for used in {key(ref) for ref in manifest.inputs}:
                index.setdefault(used, []).append(manifest.ref)
        return index

    def _closure(self, refs: Iterable[Ref], neighbours: Callable[[Ref], list[Ref]]) -> list[Ref]:
        """The refs and all that `neighbours` leads to, breadth first, each address once, as its manifest names it."""
        found: dict[str, Ref] = {}
        layer = list(refs)
        while layer:
            fresh = {ref.address: ref for ref in layer if ref.address not in found}
            for address, ref in fresh.items():
                found[address] = self.known[address].ref if address in self.known else ref
            layer = [near for ref in fresh.values() for near in neighbours(ref)]
        return list(found.values())


def _read_manifests(store: Store, paths: dict[str, str]) -> tuple[dict[str, Manifest], dict[str, str]]:
    """The manifests by address, and what is wrong with the others; `paths`: where they lie, each with its address."""
    found, damaged = {}, {}
    for address, body in zip(paths.values(), _in_parallel(store.read, paths), strict=True):
        if body is None:  # gone since the listing
            continue
        try:
            found[address] = Manifest.from_json(body, address)
        except StoreError as error:
            damaged[address] = str(error)
    return found, damaged


def _in_parallel(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        yield from pool.map(function, items)
