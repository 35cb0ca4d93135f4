"""Commands that look at recipes and at the store: plan, report, init, verify, gc."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.exits import FAILED
from flows.cli.launch import runtime_of
from flows.cli.options import JsonOption, RecipeArgument, RootOption, SetOption
from flows.cli.results import print_json, show_places, show_report
from tasks.artifacts import ReportRef

if TYPE_CHECKING:
    from tasks.library.lineage import RunRecord


def plan(
    recipe: RecipeArgument, root: RootOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Show what a run, or a comparison, would take from the store and what it would compute; computes nothing."""
    from flows.cli.tables import plan_table, print_result
    from flows.compare import plan_study
    from flows.forecast import expected_bytes
    from flows.plan import Plan, plan_recipe
    from flows.recipe import load_recipe
    from flows.study import is_study, load_study

    runtime = runtime_of(root)
    if is_study(recipe):
        found, expected = Plan.of(plan_study(load_study(recipe, overrides or ()), runtime)), 0
    else:
        loaded = load_recipe(recipe, overrides or ())
        found = plan_recipe(loaded, runtime)
        expected = expected_bytes(found, loaded, runtime)
    if as_json:
        steps = [asdict(row) for row in found.steps]
        missing = [{"step": e.step, "label": e.label, "ref": e.ref.address} for e in found.missing]
        print_json({"steps": steps, "missing": missing, "unbuilt": found.unbuilt, "expected_bytes": expected})
    else:
        print_result(plan_table(found, expected))


def report(
    run_id: Annotated[
        str, typer.Argument(metavar="[RUN]", help="A run's id or name; the latest if none is given.")
    ] = "",
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the comparison of a run, and where its HTML report lies."""
    from tasks.library.lineage import runs
    from tasks.storage.store import open_store

    runtime = runtime_of(root)
    store = open_store(runtime)
    record = _find_run(runs(store), run_id)
    reports = [ref for ref in record.refs if isinstance(ref, ReportRef)]
    if not reports:
        raise ValueError(
            f"run {record.name}: expected a run that evaluates, found one that only trains; add evaluation to it"
        )
    show_report(reports[0], store, as_json)
    show_places(record.refs, store, as_json)


def _find_run(kept: "Mapping[str, RunRecord]", wanted: str) -> "RunRecord":
    """The latest kept run with a report, else the latest, among those that the id (or its beginning) or name means."""
    found = [record for run_id, record in kept.items() if run_id.startswith(wanted) or record.name == wanted]
    if found:
        return max(enumerate(found), key=lambda item: (any(isinstance(r, ReportRef) for r in item[1].refs), item[0]))[1]
    names = ", ".join(dict.fromkeys(record.name for record in kept.values()))
    raise ValueError(
        f"expected a kept run{f' {wanted!r}' * bool(wanted)}, found {names or 'none'}; llm-fuse run RECIPE makes one"
    )


def init(
    sources: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Source models: hub ids (owner/name[@revision]) or folders.")
    ],
    target: Annotated[str, typer.Option("--target", metavar="MODEL", help="The model that learns.")],
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="PATH", help="Text to learn from: files or globs. [MiniPile]")
    ] = None,
    held_out: Annotated[
        list[str] | None, typer.Option("--held-out", metavar="PATH", help="Text to measure on. [MiniPile's test split]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write it. [stdout]")
    ] = None,
) -> None:
    """Write a commented recipe for given models."""
    from flows.starter import write_starter

    recipe = write_starter(target, sources, text or (), held_out or ())
    if output is None:
        print(recipe, end="")
        return
    with output.open("x", encoding="utf-8") as stream:
        stream.write(recipe)
    print(f"wrote {output}; next: llm-fuse plan {output}", file=sys.stderr)


def verify(
    what: Annotated[
        str, typer.Argument(metavar="[REF|PATH]", help="Only this and what it was made from. [everything]")
    ] = "",
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that artifacts are whole: every file there, of the right size and SHA-256."""
    from tasks.library.lineage import Library
    from tasks.storage.store import open_store

    library = Library.load(open_store(runtime_of(root)))
    refs = [library.find(what)] if what else None
    problems = library.verify(refs)
    checked = len(library.manifests if refs is None else library.reachable(refs))
    if as_json:
        print_json({"checked": checked, "problems": problems})
    else:
        for problem in problems:
            print(problem)
        print(f"artifacts checked: {checked}, problems: {len(problems)}")
    if problems:
        raise typer.Exit(FAILED)


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without, only say what would go.")] = False,
    min_age: Annotated[float, typer.Option("--min-age", metavar="HOURS", min=0, help="Keep what is younger.")] = 1.0,
    keep_days: Annotated[
        float | None,
        typer.Option("--keep-days", metavar="DAYS", min=0, help="Older runs are no longer kept. [all are]"),
    ] = None,
    keep_latest: Annotated[
        int | None,
        typer.Option("--keep-latest", metavar="N", min=0, help="So many runs of each name stay all the same."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="NAME", help="Runs of this name stay: paper-*. Repeatable.")
    ] = None,
    forget: Annotated[
        list[str] | None, typer.Option("--forget", metavar="NAME|ID", help="Runs that are no longer kept. Repeatable.")
    ] = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find what no kept run reaches: artifacts, and what killed processes left."""
    from flows.cli.tables import garbage_table, print_result
    from flows.collect_garbage import collect_garbage
    from tasks.library.retention import Retention

    names, forgotten = tuple(keep or ()), tuple(forget or ())
    retention = Retention(days=keep_days, latest=keep_latest, names=names, forget=forgotten)
    garbage = collect_garbage.fn(runtime_of(root), min_age * 3600, delete, retention)
    if as_json:
        items = [{"path": item.path, "kind": item.kind, "bytes": item.bytes} for item in garbage]
        print_json({"deleted": delete, "items": items})
    else:
        print_result(garbage_table(garbage, deleted=delete))
