"""Where a model comes from, told by manifests: the models and texts behind it, how it was made, how it was measured.

Its card and the check before it is published both read this.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.artifacts import AlignedRef, CorpusRef, FusedRef, Manifest, ModelRef, Ref, ReportRef, ShardRef
from tasks.evaluation.gate_rules import find_verdicts
from tasks.library.lineage import Library, runs
from tasks.models.hub import read_dataset_licence
from tasks.preflight.licences import LicenceFinding, find_licence_conflicts
from tasks.report.comparison import Comparison, ReportRow, read_comparison
from tasks.report.evidence import Coverage, Training, Wins, read_coverage, read_trainings, read_wins

Part = Literal["target", "merged", "teacher"]


@dataclass(frozen=True)
class Origin:
    """A model that another was made from. `id` and `commit`: at the hub; None for a folder or one made here.

    part: the target was trained on, merged models were averaged, teachers were read. is_made_here: by steps of this
    store; what it comes from itself is another origin.
    """

    name: str
    part: Part
    ref: ModelRef
    id: str | None
    commit: str | None
    licence: str | None
    is_made_here: bool


@dataclass(frozen=True)
class Data:
    """A text that the model or one of its origins learned from. `digest`: of what was read, names aside.

    documents: as the corpus describes them, with the commit of a data set and its licence where there is one.
    """

    name: str
    ref: CorpusRef
    digest: str
    count: int
    bytes: int
    documents: tuple[str, ...]
    licences: dict[str, str | None]


@dataclass(frozen=True)
class Evaluated:
    """The report on a model: its table, and what the artifacts behind it say."""

    comparison: Comparison
    trainings: tuple[Training, ...]
    coverage: tuple[Coverage, ...]
    wins: Wins | None


@dataclass(frozen=True)
class Provenance:
    """All that a store knows of one model.

    recipe: of the newest report or kept run that it belongs to. evaluated: by the newest report in which it is the
    fused one. verdicts: of its smoke gates. made: the manifests of everything it was made from, itself first.
    """

    manifest: Manifest
    origins: tuple[Origin, ...]
    data: tuple[Data, ...]
    recipe: dict[str, Any] | None  # Any: a recipe's JSON
    evaluated: Evaluated | None
    verdicts: tuple[Manifest, ...]
    made: tuple[Manifest, ...]

    @property
    def name(self) -> str:
        """What people call it."""
        return str(self.recipe["name"]) if self.recipe else _subject(self.manifest)

    @property
    def is_merge(self) -> bool:
        """Whether its weights are averages of others'."""
        return self.manifest.step == "merge"

    @property
    def licence(self) -> str | None:
        """What it inherits: the licence of the model whose weights it continues. None where none is stated."""
        stated = (origin.licence for origin in self.origins if origin.part != "teacher" and origin.licence)
        return next(stated, None)

    @property
    def licence_findings(self) -> list[LicenceFinding]:
        """What the licences of models and data ask; of what was made here nobody asks for one."""
        heirs = [origin for origin in self.origins if origin.part != "teacher"]
        heir = next((o for o in heirs if not o.is_made_here), None) or next(iter(heirs), None)
        named = (heir.name if heir else self.name, self.licence)
        others = {o.name: o.licence for o in self.origins if o is not heir}
        texts = {name: licence for data in self.data for name, licence in data.licences.items()}
        made_here = {o.name for o in self.origins if o.is_made_here}
        found = find_licence_conflicts(named, others, texts)
        return [f for f in found if f.severity == "conflict" or f.subject not in made_here]


def read_provenance(library: Library, model: ModelRef) -> Provenance:
    """The model's provenance. Asks the hub for licences of data sets; without it they count as not stated.

    Raises ValueError for a model that isn't in the store.
    """
    manifest = library.manifests.get(model.address)
    if manifest is None or not isinstance(manifest.ref, ModelRef):
        found = "nothing" if manifest is None else f"the result of {manifest.step}"
        raise ValueError(f"{model}: expected a model in {library.store.root}, found {found}; llm-fuse run makes one")
    ancestors = library.ancestors(model)
    report = _newest_report(library, model)
    names = {} if report is None else {s.model.address: s.name for s in report[1].standings}
    return Provenance(
        manifest=manifest,
        origins=tuple(_origins(library, manifest, names)),
        data=tuple(_describe_corpus(library, ref) for ref in ancestors if isinstance(ref, CorpusRef | ShardRef)),
        recipe=_recipe(library, model, report),
        evaluated=None if report is None else _evaluated(library, *report),
        verdicts=tuple(find_verdicts(library, model)),
        made=(manifest, *(library.known[ref.address] for ref in ancestors if ref.address in library.known)),
    )


# ---- models --------------------------------------------------------------------------------------------------


def _origins(library: Library, manifest: Manifest, names: dict[str, str]) -> Iterator[Origin]:
    """The models it was made from directly, and those that came from elsewhere behind the ones made here."""
    told: set[str] = set()
    pending: list[tuple[ModelRef, Part, bool]] = [(ref, part, True) for ref, part in _parents(library, manifest)]
    while pending:
        ref, part, is_direct = pending.pop(0)
        own = library.known.get(ref.address)
        if own is None or ref.address in told:
            continue
        told.add(ref.address)
        is_made_here = own.step != "download"
        if is_direct or not is_made_here:
            yield _origin(own, ref, part, names, is_made_here)
        if is_made_here:
            behind = [(older, _further(part, nearer), False) for older, nearer in _parents(library, own)]
            pending += behind


def _parents(library: Library, manifest: Manifest) -> list[tuple[ModelRef, Part]]:
    """The models nearest above an artifact, those whose weights it continues first."""
    first: Part = "merged" if manifest.step == "merge" else "target"
    found: dict[str, tuple[ModelRef, Part]] = {}
    layer: list[tuple[Ref, Part]] = [(ref, first) for ref in manifest.inputs]
    seen: set[str] = set()
    while layer:
        below: list[tuple[Ref, Part]] = []
        for ref, part in layer:
            if isinstance(ref, ModelRef):
                found.setdefault(ref.address, (ref, part))
            elif ref.address not in seen and not isinstance(ref, ShardRef | CorpusRef):
                seen.add(ref.address)
                own = library.known.get(ref.address)
                below += [(older, "teacher") for older in (own.inputs if own else ())]
        layer = below
    return list(found.values())


def _further(part: Part, nearer: Part) -> Part:
    """The part of a model behind an origin: a teacher's parents are teachers, a target's target is one too."""
    return "teacher" if "teacher" in (part, nearer) else part


def _origin(own: Manifest, ref: ModelRef, part: Part, names: dict[str, str], is_made_here: bool) -> Origin:
    facts = own.facts
    return Origin(
        name=names.get(ref.address) or _subject(own),
        part=part,
        ref=ref,
        id=facts.get("id"),
        commit=facts.get("commit"),
        licence=facts.get("licence"),
        is_made_here=is_made_here,
    )


def _subject(manifest: Manifest) -> str:
    """What the label says beside the step's name: `download neox` is about neox."""
    first, _, rest = manifest.label.partition(" ")
    return rest if rest and first in manifest.step else manifest.label or str(manifest.ref)


# ---- text ----------------------------------------------------------------------------------------------------


def _describe_corpus(library: Library, ref: Ref) -> Data:
    manifest = library.known.get(ref.address)
    if manifest is None:
        corpus = CorpusRef(step=ref.step, fingerprint=ref.fingerprint)
        return Data(str(ref), corpus, ref.fingerprint, 0, 0, ("no longer in the store",), {})
    assert isinstance(manifest.ref, CorpusRef)
    entries = manifest.arguments.get("spec", {}).get("documents", [])  # another step may make a corpus too
    lines, licences = [], dict[str, str | None]()
    for number, entry in enumerate(entries):
        commit = manifest.pins.get(str(number))
        lines.append(_describe_documents(entry, commit))
        if entry["kind"] == "hub_dataset":
            licences[entry["id"]] = read_dataset_licence(entry["id"], str(commit))
    facts = manifest.facts
    return Data(
        name=_subject(manifest) if " " in manifest.label else "fusion text",
        ref=manifest.ref,
        digest=manifest.fingerprint,
        count=facts.get("documents", 0),
        bytes=facts.get("bytes", 0),
        documents=tuple(lines),
        licences=licences,
    )


def _describe_documents(entry: dict[str, Any], commit: object) -> str:  # Any: JSON of a document source
    match entry["kind"]:
        case "hub_dataset":
            config = f", {entry['config']}" if entry.get("config") else ""
            return f"{entry['id']}{config}, {entry['split']}, at commit {commit}"
        case "installed":
            domains = ", ".join(entry["domains"]) or "all domains"
            return f"texts of the Python installation, {entry['split']}, {domains}"
        case "files":
            digests = [str(mark)[:12] for mark in commit] if isinstance(commit, list) else []
            return f"{len(digests)} {entry['format']} files ({', '.join(digests[:3])}{', ...' * (len(digests) > 3)})"
    return str(entry["kind"]).replace("_", " ")


# ---- measures ------------------------------------------------------------------------------------------------


def _newest_report(library: Library, model: ModelRef) -> tuple[Manifest, Comparison] | None:
    """The newest report in which the model is the fused one."""
    reports = [m for m in library.manifests.values() if m.step == "report" and model in m.inputs]
    for manifest in sorted(reports, key=lambda m: m.started_at, reverse=True):
        assert isinstance(manifest.ref, ReportRef)
        comparison = read_comparison(library.store, manifest.ref)
        if comparison.fused.model == model:
            return manifest, comparison
    return None


def _evaluated(library: Library, report: Manifest, comparison: Comparison) -> Evaluated:
    rows = [ReportRow(name=s.name, role=s.role, model=s.model, evaluation=s.evaluation) for s in comparison.standings]
    given = {ref.identity: ref for ref in report.inputs}
    sources, arguments = report.arguments["sources"], report.arguments

    def refs(listed: Sequence[dict[str, str]]) -> list[Ref]:
        return [given[entry["ref"]] for entry in listed]

    aligned = [[r for r in refs(column) if isinstance(r, AlignedRef)] for column in arguments["aligned"]]
    fused = [r for r in refs(arguments["fused"]) if isinstance(r, FusedRef)]
    target = next((row.name for row in rows if row.role == "target"), "target")
    return Evaluated(
        comparison=comparison,
        trainings=tuple(read_trainings(rows, library.known)),
        coverage=tuple(read_coverage(sources, aligned, library.known)),
        wins=read_wins([target, *sources], fused, library.known),
    )


def _recipe(library: Library, model: ModelRef, report: tuple[Manifest, Comparison] | None) -> dict[str, Any] | None:
    if report is not None:
        return dict(report[0].arguments["recipe"])
    records = runs(library.store).values()
    kept = [r.recipe for r in records if model in r.refs and "target" in r.recipe]  # a study isn't a recipe
    return kept[-1] if kept else None
