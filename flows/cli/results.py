"""What commands print when they are done: a comparison, where things lie, or the same as JSON lines."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifacts import ModelRef, Ref, ReportRef

if TYPE_CHECKING:
    from tasks.report import Comparison
    from tasks.storage.store import Store


def show_comparison(comparison: "Comparison", as_json: bool) -> None:
    """Prints the comparison as tables."""
    from flows.cli.tables import comparison_table, print_result

    if as_json:
        print_json({"event": "comparison", **comparison.model_dump(mode="json")})
    else:
        print_result(comparison_table(comparison))


def show_report(ref: ReportRef, store: "Store", as_json: bool) -> None:
    """Prints a report's table: one of a run, or one of a study."""
    from flows.cli.arms import arms_table
    from flows.cli.tables import print_result
    from tasks.report import read_comparison
    from tasks.report.arms import read_table
    from tasks.report.study import tabulate

    if ref.step != tabulate.name:
        show_comparison(read_comparison(store, ref), as_json)
    elif as_json:
        print_json({"event": "comparison", **read_table(store, ref).model_dump(mode="json")})
    else:
        print_result(arms_table(read_table(store, ref)))


def show_places(refs: Iterable[Ref], store: "Store", as_json: bool) -> None:
    """Prints where models and reports lie: as files where the store is a disk, else below its root."""
    for ref in refs:
        manifest = store.manifest(ref)
        if manifest is None or not isinstance(ref, ModelRef | ReportRef):
            continue
        name = "model" if isinstance(ref, ModelRef) else "report"
        page = "/report.html" if isinstance(ref, ReportRef) else ""
        place = _short(f"{store.base if store.is_local else store.root}/{ref.address}/{manifest.owner}{page}")
        if as_json:
            print_json({"event": "result", "name": name, "ref": ref.address, "path": place})
        else:
            print(f"{name:<8}{place}")


def print_json(value: dict[str, Any]) -> None:  # Any: plain JSON
    """Prints one JSON object on one line."""
    print(json.dumps(value), flush=True)


def _short(path: str) -> str:
    """Relative to the working directory where the path lies below it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
