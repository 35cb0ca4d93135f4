"""Where the numbers come from, as sections of the page: teachers, alignment, trainings, lineage, time, environment."""

from collections.abc import Sequence

import yaml

from tasks.artifacts import Manifest
from tasks.quantities import format_bytes, format_seconds
from tasks.report.charts import curve
from tasks.report.comparison import Comparison
from tasks.report.evidence import Coverage, Evidence, Manifests, Training, Wins
from tasks.report.lineage_graph import draw_lineage
from tasks.report.markup import Html, element, heading, panels, paragraph, row, share, table


def describe_origins(comparison: Comparison, evidence: Evidence) -> list[Html]:
    """The sections, without those about which the manifests say nothing."""
    return [
        *_wins(evidence.wins),
        *_coverage(evidence.coverage),
        *_trainings(evidence.trainings),
        *_lineage(comparison, evidence.manifests),
        *_effort(evidence.manifests),
        *_environment(evidence.manifests),
    ]


def _wins(wins: Wins | None) -> list[Html]:
    if wins is None:
        return []
    total = wins.total
    places = [*wins.domains.items(), *([("all", total)] if len(wins.domains) > 1 else [])]
    rows = [
        row(
            name,
            f"{facts.documents:,}",
            *[share(won, facts.documents) for won in facts.documents_won],
            share(facts.rows_covered, facts.rows),
            class_="total" if facts is total else "",
        )
        for name, facts in places
    ]
    costs = [f"{bits:.3f}" if size else "–" for bits, size in zip(total.bits_per_byte, total.bytes, strict=True)]
    rows.append(row("bits per byte there", "", *costs, "", class_="total"))
    return [
        heading("Who taught what"),
        paragraph(
            "Share of the fusion text’s documents that each candidate taught (in a mixture: weighed heaviest in most "
            "rows), and share of the target’s rows that have a teacher at all."
        ),
        table(["domain", "documents", *wins.candidates, "rows with a teacher"], rows),
    ]


def _coverage(coverage: Sequence[Coverage]) -> list[Html]:
    if not coverage:
        return []
    rows = [
        row(
            c.source,
            f"{c.shards:,}",
            f"{c.rows:,}",
            share(c.present, c.rows),
            *[share(mass, 1.0) for mass in (c.kept, c.tail, c.unknown)],
            f"{c.quarantined:,}",
        )
        for c in coverage
    ]
    return [
        heading("Alignment"),
        paragraph(
            "How many of the target’s rows each source could fill, and the mean probability there: kept on tokens of "
            "the target, certainly outside them (tail), or unknown. Quarantined documents had NaN or infinite logits."
        ),
        table(["source", "shards", "rows", "filled", "kept", "tail", "unknown", "quarantined"], rows),
    ]


def _trainings(trainings: Sequence[Training]) -> list[Html]:
    if not trainings:
        return []
    rows = [
        row(
            t.name,
            f"{t.epochs:g}",
            *(f"{count:,}" for count in (t.steps, t.sequences, t.tokens)),
            f"{t.learning_rate:g}",
            f"{t.seed}",
            t.batches_sha256[:12],
            t.objective,
            class_="strong" if t.role == "fused" else "",
        )
        for t in trainings
    ]
    curves = [
        (t.name, curve(t.losses, "optimizer steps", "loss, nats per token", strong=t.role == "fused"))
        for t in trainings
        if t.losses
    ]
    header = [
        "model",
        "epochs",
        "steps",
        "sequences",
        "tokens",
        "learning rate",
        "seed",
        "batches’ SHA-256",
        "objective",
    ]
    return [
        heading("Training"),
        *_data_order(trainings),
        table(header, rows),
        paragraph("Training loss of each model’s own objective; only equal objectives can be compared."),
        panels(curves),
    ]


def _data_order(trainings: Sequence[Training]) -> list[Html]:
    """Whether the fused model and its baselines saw the same batches in the same order, by their digests."""
    fused = next((t for t in trainings if t.role == "fused"), None)
    baselines = [t for t in trainings if t.role == "baseline"]
    if fused is None or not baselines:
        return []
    same = [t.name for t in baselines if t.batches_sha256 == fused.batches_sha256]
    other = [f"{t.name} ({t.steps:,} steps against {fused.steps:,})" for t in baselines if t.name not in same]
    told = []
    if same:
        told.append(f"By their SHA-256, {', '.join(same)} and {fused.name} saw the same batches in the same order.")
    if other:
        told.append(f"Other batches, or in another order: {', '.join(other)}.")
    return [paragraph(" ".join(told))]


def _lineage(comparison: Comparison, manifests: Manifests) -> list[Html]:
    if not manifests:
        return []
    names = {ref.address: s.name for s in comparison.standings for ref in (s.model, s.evaluation)}
    picture = draw_lineage(manifests, names, marked=comparison.fused.model.address)
    return [
        heading("Lineage"),
        paragraph("Every box was made from the boxes above it; shards share a box. The fused model stands out."),
        element("div", picture, class_="wide lineage"),
    ]


def _effort(manifests: Manifests) -> list[Html]:
    """What was computed and how long it took, by step in order of time."""
    steps: dict[str, list[Manifest]] = {}
    for manifest in sorted(manifests.values(), key=lambda m: (m.started_at, m.ref.address)):
        steps.setdefault(manifest.step, []).append(manifest)
    rows = [
        row(
            name.replace("_", " "),
            f"{len(made):,}",
            format_seconds(sum(m.seconds for m in made)),
            format_bytes(sum(m.total_bytes for m in made)),
        )
        for name, made in steps.items()
    ]
    return [heading("Time and space"), table(["step", "artifacts", "time", "stored"], rows)]


def _environment(manifests: Manifests) -> list[Html]:
    found: dict[str, int] = {}
    for manifest in manifests.values():
        told = yaml.safe_dump(manifest.environment, sort_keys=True, allow_unicode=True, width=110)
        found[told] = found.get(told, 0) + 1
    parts = [heading("Environment")]
    for told, count in sorted(found.items()):
        parts += [paragraph(f"{count:,} of {len(manifests):,} artifacts were computed with"), element("pre", told)]
    return parts
