"""What a fusion's page in Prefect's UI tells at the end: where the model came from, quality, the comparison."""

import json
from collections.abc import Iterator, Sequence

from flows.recipe import Recipe
from flows.run_page import Note
from flows.run_tables import comparison_markdown, lineage_markdown, quality_table
from tasks.artifacts import Manifest, ReportRef
from tasks.report import PAGE, read_comparison
from tasks.running.planning import Planned
from tasks.storage.store import Store


def summarize_fusion(
    recipe: Recipe, store: Store, entries: Sequence[Planned], manifests: dict[str, Manifest]
) -> Iterator[Note]:
    """Lineage, what each source gave, and the comparison where there is one."""
    marked = entries[-1].ref.address
    yield Note("lineage", "markdown", lineage_markdown(manifests, marked), "What was made from what.")
    quality = quality_table(recipe.target.name, [source.name for source in recipe.sources], entries, manifests)
    meaning = "What each model read and kept, and how much of it the target can use."
    yield Note("quality", "table", json.dumps(quality), meaning)
    for ref in (entry.ref for entry in entries if isinstance(entry.ref, ReportRef)):
        if (manifest := manifests.get(ref.address)) is not None:
            text = comparison_markdown(read_comparison(store, ref), place_of(manifest, PAGE, store))
            meaning = "The fused model next to its sources, its target and the baselines."
            yield Note("comparison", "markdown", text, meaning)


def place_of(manifest: Manifest, file: str, store: Store) -> str:
    """Where a file of an artifact lies: a path, or the URL of an object."""
    return f"{store.base if store.is_local else store.root}/{manifest.ref.address}/{manifest.owner}/{file}"
