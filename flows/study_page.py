"""What a comparison's page in Prefect's UI shows: the arms under way, and at the end their table and lineage."""

from collections.abc import Iterator, Sequence

from flows.fusion_page import place_of
from flows.run_page import Note
from flows.run_tables import Grid, lineage_markdown
from tasks.artifacts import Manifest, ReportRef
from tasks.report.arms import read_table
from tasks.report.arms_text import table_markdown
from tasks.report.study import PAGE
from tasks.running.planning import Planned
from tasks.storage.store import Store


def arms_grid(target: str) -> Grid:
    """One row per arm and seed: whether its model is made and evaluated."""

    def place(label: str) -> tuple[str, str] | None:
        for start, column in ((f"train {target} ", "model"), ("merge ", "model"), ("evaluate ", "evaluation")):
            if label.startswith(start):
                return column, label.removeprefix(start)
        return None

    return Grid("arms", "What has become of each arm's model and its evaluation.", "arm", place)


def summarize_study(
    store: Store, tables: Sequence[ReportRef], entries: Sequence[Planned], manifests: dict[str, Manifest]
) -> Iterator[Note]:
    """What was made from what, and the table that was made, if any, with the place of its report."""
    marked = tables[-1] if tables else entries[-1].ref
    yield Note("lineage", "markdown", lineage_markdown(manifests, marked.address), "What was made from what.")
    for table in tables:
        if (manifest := store.manifest(table)) is not None:
            place = place_of(manifest, PAGE, store)
            text = (
                f"{table_markdown(read_table(store, table))}\n\nThe report as one HTML page, for a browser: `{place}`"
            )
            yield Note("comparison", "markdown", text, "Every arm next to the others.")
