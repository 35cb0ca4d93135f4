"""Tabulate: the arms of a study side by side, as JSON, Markdown, CSV and one HTML page."""

from tasks.artifacts import ReportRef, Runtime
from tasks.report.arms import TABLE, Arm, make_table
from tasks.report.arms_page import render_study
from tasks.report.arms_text import table_csv, table_markdown
from tasks.step import Output, step
from tasks.storage.store import open_store

PAGE, MARKDOWN, CSV = "report.html", "table.md", "table.csv"


@step(version=2)  # 2: batches that nobody compared are marked
def tabulate(
    title: str,
    arms: list[Arm],
    main: str,
    rival: str,
    study: dict[str, object],
    *,
    runtime: Runtime,
    out: Output,
) -> ReportRef:
    """The table as `table.json`, `table.md`, `table.csv` and `report.html`. `study`: what was asked for, for people."""
    table = make_table(title, arms, main, rival, open_store(runtime))
    (out.dir / TABLE).write_text(table.model_dump_json(indent=1), encoding="utf-8")
    (out.dir / MARKDOWN).write_text(table_markdown(table), encoding="utf-8")
    (out.dir / CSV).write_text(table_csv(table), encoding="utf-8")
    (out.dir / PAGE).write_text(render_study(table, study), encoding="utf-8")
    out.facts["mean_bits_per_byte"] = {arm.name: arm.mean.estimate for arm in table.arms}
    return out.ref(ReportRef)
