"""Report: the fused model next to its sources, its target and its baselines, as JSON and as one HTML page."""

from tasks.artifacts import AlignedRef, FusedRef, ReportRef, Runtime
from tasks.report.comparison import (
    COMPARISON,
    Comparison,
    Difference,
    Domain,
    Regression,
    ReportRow,
    Role,
    Standing,
    compare,
    read_comparison,
)
from tasks.report.evidence import read_evidence
from tasks.report.page import render_page
from tasks.step import Output, step
from tasks.storage.store import open_store

__all__ = [
    "PAGE",
    "Comparison",
    "Difference",
    "Domain",
    "Regression",
    "ReportRow",
    "Role",
    "Standing",
    "read_comparison",
    "report",
]

PAGE = "report.html"


@step(version=1)
def report(
    title: str,
    rows: list[ReportRow],
    sources: list[str],
    aligned: list[list[AlignedRef]],
    fused: list[FusedRef],
    recipe: dict[str, object],
    *,
    runtime: Runtime,
    out: Output,
) -> ReportRef:
    """The comparison as `comparison.json` and `report.html`. `aligned[i][j]` is source `sources[i]` on shard `j`."""
    store = open_store(runtime)
    comparison = compare(title, rows, store)
    page = render_page(comparison, read_evidence(store, rows, sources, aligned, fused), recipe)
    (out.dir / COMPARISON).write_text(comparison.model_dump_json(indent=1), encoding="utf-8")
    (out.dir / PAGE).write_text(page, encoding="utf-8")
    out.facts["mean_bits_per_byte"] = {standing.name: standing.mean.estimate for standing in comparison.standings}
    return out.ref(ReportRef)
