"""The report of an inspection: verdicts, pairs, scores and needs, as JSON and as one HTML page."""

from collections.abc import Mapping, Sequence

from tasks.artifacts import InspectionRef, Runtime
from tasks.preflight.findings import (
    Inspection,
    ModelScores,
    PairFindings,
    Rows,
    ScoreFindings,
    read_findings,
    write_findings,
)
from tasks.preflight.licences import find_licence_conflicts
from tasks.preflight.verdicts import judge
from tasks.quantities import format_bytes
from tasks.report.markup import Html, element, heading, paragraph, row, share, table
from tasks.report.page import render_document
from tasks.step import Output, step
from tasks.storage.store import open_store

INSPECTION_PAGE = "inspection.html"


@step(version=1)
def report_inspection(
    title: str,
    target: str,
    pairs: Mapping[str, InspectionRef],
    scores: InspectionRef | None,
    not_run: Mapping[str, str],
    licences: Mapping[str, Mapping[str, str | None]],
    needs: Mapping[str, str],
    warnings: Sequence[str],
    *,
    runtime: Runtime,
    out: Output,
) -> InspectionRef:
    """The verdicts and what they rest on: `Inspection` as JSON, and `inspection.html`.

    licences: by name, under "models" and "data"; what isn't named there isn't asked for one.
    needs: what a run takes, in words.
    """
    store = open_store(runtime)
    found = {name: read_findings(store, ref, PairFindings) for name, ref in pairs.items()}
    scored = None if scores is None else read_findings(store, scores, ScoreFindings)
    known = {**licences["models"], **licences["data"]}
    conflicts = [
        finding
        for finding in find_licence_conflicts(
            (target, known.get(target)), {name: known.get(name) for name in pairs}, licences["data"]
        )
        if finding.subject in known  # of one's own folders nobody asks for a licence
    ]
    inspection = Inspection(
        title=title,
        target=target,
        pairs=found,
        scores=scored,
        not_run=dict(not_run),
        needs=dict(needs),
        warnings=(*warnings, *(f"{c.subject}: {c.reason}" for c in conflicts if c.subject not in pairs)),
        verdicts=judge(target, found, scored, conflicts),
    )
    write_findings(out.dir, inspection)
    (out.dir / INSPECTION_PAGE).write_text(render_inspection(inspection), encoding="utf-8")
    out.facts["verdicts"] = {name: verdict.choice for name, verdict in inspection.verdicts.items()}
    return out.ref(InspectionRef)


def render_inspection(inspection: Inspection) -> str:
    """The page. The same inspection gives the same bytes."""
    return render_document(
        f"{inspection.title}: before the run",
        *_verdicts(inspection),
        *_coverage(inspection),
        *_vocabularies(inspection),
        *_scores(inspection),
        *_needs(inspection),
    )


def _verdicts(inspection: Inspection) -> list[Html]:
    found = [
        element("li", element("strong", f"{name}: {verdict.choice}"), f" – {'; '.join(verdict.reasons)}")
        for name, verdict in inspection.verdicts.items()
    ]
    warnings = [element("li", warning) for warning in inspection.warnings]
    return [
        paragraph(f"Should these models teach {inspection.target}?", class_="verdict"),
        element("ul", *found),
        *([paragraph("Of the recipe as a whole:"), element("ul", *warnings)] if warnings else []),
    ]


def _coverage(inspection: Inspection) -> list[Html]:
    kinds = list(dict.fromkeys(kind for pair in inspection.pairs.values() for kind in pair.kinds))
    none = Rows(common=0, bridged=0, absent=0)
    rows = []
    for name, pair in inspection.pairs.items():
        every = pair.rows
        cells = [_met(pair.kinds.get(kind, none)) for kind in kinds]
        rows.append(row(name, _met(every), share(every.bridged, every.total), share(every.absent, every.total), *cells))
    size = max((pair.sample_bytes for pair in inspection.pairs.values()), default=0)
    return [
        heading("Where rows meet"),
        paragraph(
            f"Share of the target’s rows in {format_bytes(size)} of the corpus where the source has a row at the same "
            "byte; inside: only where bridged; absent: nowhere. Then rows at common boundaries by kind of text."
        ),
        table(["source", "common", "inside", "absent", *kinds], rows),
    ]


def _met(rows: Rows) -> str:
    return share(rows.common, rows.total) if rows.total else "–"


def _vocabularies(inspection: Inspection) -> list[Html]:
    rows = [
        row(
            name,
            f"{pair.source.tokens:,}",
            share(pair.shared, pair.source_tokens),
            share(pair.shared_bytes, pair.read_bytes),
            share(pair.multi_piece, pair.source_tokens),
            f"{pair.source.bytes_per_token:.2f}",
            "–" if pair.source.padded_rows is None else f"{pair.source.padded_rows:,}",
        )
        for name, pair in inspection.pairs.items()
    ]
    header = ["source", "tokens", "shared", "of the text", "multi-piece", "bytes per token", "padded rows"]
    return [
        heading("Vocabularies"),
        paragraph(
            "Shared: tokens whose bytes are one token of the target; of the text: the bytes that such tokens hold; "
            "multi-piece: tokens that the target cuts into several."
        ),
        table(header, rows),
        *_special_tokens(inspection),
    ]


def _special_tokens(inspection: Inspection) -> list[Html]:
    some_pair = next(iter(inspection.pairs.values()))  # the target is the same in all, and a recipe has a source
    models = {inspection.target: some_pair.target, **{name: pair.source for name, pair in inspection.pairs.items()}}
    roles = list(dict.fromkeys(role for model in models.values() for role in model.roles))
    rows = [
        row(name, *[model.roles.get(role, "–") for role in roles], "yes" if model.chat_template else "no")
        for name, model in models.items()
    ]
    return [
        paragraph("Special tokens by their role; only the end of a text is taught, whatever it is called."),
        table(["model", *roles, "chat template"], rows),
    ]


def _scores(inspection: Inspection) -> list[Html]:
    skipped = [element("li", f"{name}: {reason}") for name, reason in inspection.not_run.items()]
    not_run = [heading("Not run over the sample"), element("ul", *skipped)] if skipped else []
    scores = inspection.scores
    if scores is None:
        return not_run
    domains = list(dict.fromkeys(domain for model in scores.models.values() for domain in model.bits_per_byte))
    rows = [_score_row(name, model, domains) for name, model in scores.models.items()]
    differ, compared = scores.documents_chosen_differently, scores.documents_compared
    choice = f"Nats per token and bits per byte choose another teacher in {differ:,} of {compared:,} documents."
    return [
        heading("A sample read"),
        paragraph(
            "Bits per byte by domain, lower is better. Kept: mass of what extraction keeps. Truncation: bits per byte "
            "that a student would pay more if what is kept were all that it learns."
        ),
        table(["model", *domains, "kept", "label kept", "truncation"], rows),
        *([paragraph(choice)] if compared else []),
        *not_run,
    ]


def _score_row(name: str, model: ModelScores, domains: Sequence[str]) -> Html:
    bits = [f"{model.bits_per_byte[domain]:.3f}" if domain in model.bits_per_byte else "–" for domain in domains]
    lost = "none" if model.truncation_bits is None else f"{model.truncation_bits:.3f}"
    return row(name, *bits, f"{100 * model.kept:.1f} %", f"{100 * model.label_kept:.1f} %", lost)


def _needs(inspection: Inspection) -> list[Html]:
    rows = [row(name, need) for name, need in inspection.needs.items()]
    return [heading("What a run takes"), table(["", "at least"], rows)] if rows else []
