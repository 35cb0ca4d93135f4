"""What the manifests behind a comparison say: trainings, alignment, who won, time and place. No data file is read."""

import operator
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

from fusion_core.fusion import FusionFacts
from tasks.artifacts import AlignedRef, FusedRef, Manifest, Ref
from tasks.report.comparison import ReportRow, Role
from tasks.storage.store import Store

Manifests = dict[str, Manifest]
"""By address. Artifacts that are no longer in the store are missing."""


@dataclass(frozen=True)
class Training:
    """How one model of the table was trained. `losses` are (optimizer step, nats per token of its objective)."""

    name: str
    role: Role
    objective: str
    epochs: float
    steps: int
    sequences: int
    tokens: int
    learning_rate: float
    seed: int
    batches_sha256: str
    losses: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Coverage:
    """One source's alignment over all shards: rows of the target, and mean mass of those that are present."""

    source: str
    shards: int
    rows: int
    present: int
    kept: float
    tail: float
    unknown: float
    quarantined: int


@dataclass(frozen=True)
class Wins:
    """Who taught what: the candidates' names, and fusion's facts per domain."""

    candidates: tuple[str, ...]
    domains: dict[str, FusionFacts]

    @property
    def total(self) -> FusionFacts:
        """All domains together."""
        return reduce(operator.add, self.domains.values())


@dataclass(frozen=True)
class Evidence:
    """All of it."""

    trainings: tuple[Training, ...]
    coverage: tuple[Coverage, ...]
    wins: Wins | None
    manifests: Manifests


def read_evidence(
    store: Store,
    rows: Sequence[ReportRow],
    sources: Sequence[str],
    aligned: Sequence[Sequence[AlignedRef]],
    fused: Sequence[FusedRef],
) -> Evidence:
    """What is known of the rows and of the fusion behind them; `aligned[i][j]` is `sources[i]` on shard `j`."""
    refs = [ref for row in rows for ref in (row.model, row.evaluation)]
    manifests = read_ancestry(store, [*refs, *fused, *(ref for own in aligned for ref in own)])
    target = next((row.name for row in rows if row.role == "target"), "target")
    return Evidence(
        trainings=tuple(read_trainings(rows, manifests)),
        coverage=tuple(read_coverage(sources, aligned, manifests)),
        wins=read_wins([target, *sources], fused, manifests),
        manifests=manifests,
    )


def read_ancestry(store: Store, refs: Iterable[Ref]) -> Manifests:
    """The manifests of the artifacts and of everything they were made from."""
    found: Manifests = {}
    frontier = {ref.address: ref for ref in refs}
    asked = set(frontier)
    with ThreadPoolExecutor(max_workers=16) as pool:  # a bucket answers in milliseconds, and there are thousands
        while frontier:
            answers = zip(frontier, pool.map(store.manifest, frontier.values()), strict=True)
            arrived = {address: manifest for address, manifest in answers if manifest is not None}
            found |= arrived
            parents = {ref.address: ref for manifest in arrived.values() for ref in manifest.inputs}
            frontier = {address: ref for address, ref in parents.items() if address not in asked}
            asked |= set(frontier)
    return found


def read_trainings(rows: Sequence[ReportRow], manifests: Manifests) -> list[Training]:
    """The trainings of the rows whose models were trained here: the fused one first, then by the table's order."""
    found = []
    for row in sorted(rows, key=lambda row: row.role != "fused"):
        manifest = manifests.get(row.model.address)
        if manifest is None or "losses" not in manifest.facts:
            continue
        spec, facts = manifest.arguments["spec"], manifest.facts
        found.append(
            Training(
                name=row.name,
                role=row.role,
                objective=_objective(spec, bool(manifest.arguments["teachers"])),
                losses=tuple((entry["step"], entry["loss"]) for entry in facts["losses"]),
                **{name: spec[name] for name in ("epochs", "learning_rate", "seed")},
                **{name: facts[name] for name in ("steps", "sequences", "tokens", "batches_sha256")},
            )
        )
    return found


def read_coverage(
    sources: Sequence[str], aligned: Sequence[Sequence[AlignedRef]], manifests: Manifests
) -> list[Coverage]:
    """One entry per source whose alignments are in the store; masses are weighed by present rows."""
    found = []
    for source, refs in zip(sources, aligned, strict=True):
        present = [manifests[ref.address] for ref in refs if ref.address in manifests]
        if present:
            found.append(_coverage(source, present, manifests))
    return found


def read_wins(names: Sequence[str], fused: Sequence[FusedRef], manifests: Manifests) -> Wins | None:
    """Who won, over all shards; `names` are the target's and the sources'. None where nothing is left to read."""
    found = [manifests[ref.address] for ref in fused if ref.address in manifests]
    if not found:
        return None
    candidates = tuple(names) if found[0].arguments["target_as_teacher"] else tuple(names[1:])
    domains: dict[str, FusionFacts] = {}
    for manifest in found:
        for name, facts in manifest.facts["domains"].items():
            here = _fusion_facts(facts)
            domains[name] = domains[name] + here if name in domains else here
    return Wins(candidates, domains)


def _objective(spec: dict[str, Any], taught: bool) -> str:  # Any: plain JSON
    weight = spec["lm_weight"]
    if weight == 1 or not taught:
        return "language modelling"
    divergence = spec["divergence"]["kind"].replace("_", " ")
    fades = ", fading" if spec.get("lm_weight_schedule") == "rising" else ""
    return f"{weight:g} language modelling + {1 - weight:g} {divergence}{fades}"


def _coverage(source: str, alignments: Sequence[Manifest], manifests: Manifests) -> Coverage:
    facts = [manifest.facts for manifest in alignments]
    present = sum(f["present"] for f in facts)

    def mean(name: str) -> float:
        return float(sum(f[name] * f["present"] for f in facts) / max(present, 1))

    extractions = {m.inputs[0].address for m in alignments}  # what the source itself read
    quarantined = sum(len(manifests[a].facts.get("quarantined", ())) for a in extractions if a in manifests)
    rows = sum(f["rows"] for f in facts)
    return Coverage(source, len(facts), rows, present, mean("kept"), mean("tail"), mean("unknown"), quarantined)


def _fusion_facts(facts: dict[str, Any]) -> FusionFacts:  # Any: plain JSON
    values = {field.name: facts[field.name] for field in fields(FusionFacts)}
    tuples: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return FusionFacts(**tuples)
