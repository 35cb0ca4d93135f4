"""Commands that compute: run, demo, refresh, compare, evaluate."""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.launch import launch, runtime_of
from flows.cli.options import (
    DeviceOption,
    JsonOption,
    RecipeArgument,
    RootOption,
    RuntimeOption,
    SetOption,
    WorkersOption,
)
from flows.cli.results import print_json, show_comparison, show_places, show_report
from tasks.artifacts import Runtime

if TYPE_CHECKING:
    from flows.fuse import FusionResult
    from flows.recipe import Recipe

QUICKSTART = "quickstart"


def run(
    recipe: RecipeArgument,
    root: RootOption = None,
    overrides: SetOption = None,
    device: DeviceOption = None,
    max_workers: WorkersOption = None,
    settings: RuntimeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fuse models as a recipe says; what the store holds already is not computed again."""
    from flows.recipe import load_recipe

    _fuse(load_recipe(recipe, overrides or ()), runtime_of(root, device, max_workers, settings), as_json)


def demo(root: RootOption = None, max_workers: WorkersOption = None, as_json: JsonOption = False) -> None:
    """Fuse three small models into a fourth on the text that this Python installation carries; no download."""
    from flows.recipe import load_recipe

    recipe = load_recipe(QUICKSTART)
    print(f"llm-fuse demo: {recipe.description}", file=sys.stderr)
    _fuse(recipe, runtime_of(root, None, max_workers), as_json)


def refresh(
    recipe: RecipeArgument,
    what: Annotated[
        str,
        typer.Argument(
            metavar="STEP|LABEL", help="A step (extract), a label (train llama fused) or a beginning of one."
        ),
    ],
    root: RootOption = None,
    overrides: SetOption = None,
    device: DeviceOption = None,
    max_workers: WorkersOption = None,
    settings: RuntimeOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be computed again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compute steps of a recipe again on purpose: delete what they made, then run."""
    from flows.plan import plan_recipe
    from flows.recipe import load_recipe
    from tasks.storage.store import open_store

    loaded, runtime = load_recipe(recipe, overrides or ()), runtime_of(root, device, max_workers, settings)
    chosen = plan_recipe(loaded, runtime).select(what)
    for entry in chosen:
        print(f"recompute {entry.label} ({entry.ref.address})", file=sys.stderr)
    if dry_run:
        return
    store = open_store(runtime)
    for entry in chosen:
        if (manifest := store.manifest(entry.ref)) is not None:
            store.withdraw(manifest)
    _fuse(loaded, runtime, as_json)


def compare(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A YAML file, a URL, or the name of a shipped study.")],
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="ARM", help="Only this one, with what it needs and CLM only. Repeatable."),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Only the first so many seeds.")] = None,
    root: RootOption = None,
    overrides: SetOption = None,
    device: DeviceOption = None,
    max_workers: WorkersOption = None,
    settings: RuntimeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare variants of a recipe with each other, with controls and with training alone; resumable like a run."""
    from flows.compare import TableIncomplete
    from flows.compare import compare as compare_flow
    from flows.study import load_study
    from tasks.storage.store import open_store

    runtime = runtime_of(root, device, max_workers, settings)
    wanted = load_study(study, overrides or ()).narrow(only or (), seeds)
    store = open_store(runtime)
    try:
        made = _watched(as_json, compare_flow, wanted, runtime=runtime)
    except TableIncomplete as incomplete:
        show_report(incomplete.table, store, as_json)
        show_places([incomplete.table], store, as_json)
        raise
    show_report(made, store, as_json)
    show_places([made], store, as_json)


def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Hub ids, folders, or models of the store (train/3f2a...).")
    ],
    corpus: Annotated[
        list[str] | None,
        typer.Option("--corpus", metavar="RECIPE|FILE", help="A recipe, for its held-out text, or files. [quickstart]"),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            metavar="TASK",
            help="A name (arc_easy), suite (common_sense, generative, fusellm), FOLDER#name or problems.jsonl.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Questions of each task at most.")] = None,
    run_untrusted_code: Annotated[
        bool,
        typer.Option(
            "--run-untrusted-code",
            help="For code problems: run programs that models write, in a sandbox that shares this machine's kernel.",
        ),
    ] = False,
    root: RootOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure models in bits per byte on held-out text, and on tasks; the first is compared with the others."""
    from flows.cli.measuring import candidates_of, held_out_of, tasks_of
    from flows.evaluation import evaluate_model
    from tasks.report.comparison import compare
    from tasks.step import planning
    from tasks.storage.store import open_store

    runtime = runtime_of(root, device)
    first, *others = candidates_of(models, runtime)
    text, spec = held_out_of(corpus or [QUICKSTART])
    asked = tasks_of(tasks or (), limit, run_untrusted_code=run_untrusted_code)
    with planning():  # a missing model is found out before anything is computed
        evaluate_model.fn(first, text, spec, others, asked, runtime)
    rows = _watched(as_json, evaluate_model, first, text, spec, others, asked, runtime=runtime)
    show_comparison(compare("evaluation", rows, open_store(runtime)), as_json)


def _fuse(recipe: "Recipe", runtime: Runtime, as_json: bool) -> None:
    from flows.forecast import expected_bytes
    from flows.fuse import fuse_models
    from flows.plan import plan_recipe
    from tasks.report import read_comparison
    from tasks.storage.store import open_store

    store = open_store(runtime)
    if store.is_local:  # a bucket has no end, and asking it for every artifact twice takes time
        store.probe(expected_bytes(plan_recipe(recipe, runtime), recipe, runtime))
    result: FusionResult = _watched(as_json, fuse_models, recipe, runtime=runtime)
    if result.report is not None:
        show_comparison(read_comparison(store, result.report), as_json)
    show_places([result.model, *([result.report] if result.report else [])], store, as_json)


def _watched(as_json: bool, flow: Any, *arguments: Any, runtime: Runtime) -> Any:  # Any: a flow's signature is its own
    """Runs the flow with its progress shown; what it returns."""
    from flows.cli.progress import choose_display

    clock = time.monotonic()
    with choose_display(as_json=as_json) as display:
        value = launch(flow, *arguments, runtime=runtime)
    tally, seconds = display.tally, time.monotonic() - clock
    if as_json:
        print_json(
            {"event": "finished", "cached": tally.cached, "computed": tally.computed, "seconds": round(seconds, 1)}
        )
    else:
        print(f"{tally.sentence()} in {seconds:.1f} s", file=sys.stderr)
    return value
