"""`llm-fuse inspect`: what a fusion could gain and what it takes, before it is run."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.exits import FAILED
from flows.cli.launch import launch, runtime_of
from flows.cli.options import DeviceOption, JsonOption, RootOption, SetOption
from flows.cli.results import print_json

if TYPE_CHECKING:
    from flows.recipe import Recipe


def inspect(
    what: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE | TARGET SOURCE...", help="A recipe; with --tokenizers a target and sources."),
    ],
    tokenizers: Annotated[
        bool, typer.Option("--tokenizers", help="Of models as folders or hub ids their tokenizers alone; needs --text.")
    ] = False,
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="FILE", help="Text to compare the tokenizers on; repeatable.")
    ] = None,
    no_forward: Annotated[bool, typer.Option("--no-forward", help="Run no model, not even small ones.")] = False,
    price_per_hour: Annotated[
        float | None, typer.Option("--price-per-hour", min=0, metavar="PRICE", help="Of one device, to tell the cost.")
    ] = None,
    tflops: Annotated[float, typer.Option("--tflops", min=0.001, help="What a device sustains, in TFLOP/s.")] = 100.0,
    corpus_bytes: Annotated[
        int | None, typer.Option("--corpus-bytes", min=1, help="Size of the corpus, where it can't be told.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail the command.")] = False,
    overrides: SetOption = None,
    root: RootOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what each source could give the target, and what a run takes, before any is run."""
    from flows.cli.tables import inspection_tables, print_result
    from flows.inspect_recipe import Assumptions, inspect_recipe
    from tasks.preflight.findings import Inspection, read_findings
    from tasks.storage.store import open_store

    recipe = _recipe_of(what, tokenizers, text or (), overrides or ())
    runtime = runtime_of(root, device)
    assumptions = Assumptions(
        forward=not (no_forward or tokenizers),
        tflops=tflops,
        corpus_bytes=corpus_bytes,
        price_per_hour=price_per_hour,
    )
    ref = launch(inspect_recipe, recipe, assumptions, runtime=runtime)
    store = open_store(runtime)
    found = read_findings(store, ref, Inspection)
    page = store.fetch(ref) / "inspection.html"
    if as_json:
        print_json({"event": "inspection", "page": str(page), **found.model_dump(mode="json")})
    else:
        print_result(inspection_tables(found))
        print(f"page    {page}")
    if strict and found.has_warnings:
        raise typer.Exit(FAILED)


def _recipe_of(what: Sequence[str], tokenizers: bool, text: Sequence[str], overrides: Sequence[str]) -> "Recipe":
    """The recipe that is named, or one over the given models and texts, each text a domain of its own."""
    from flows.recipe import NamedModel, Recipe, load_recipe
    from flows.starter import distinct_names, documents_of, model_of
    from tasks.corpus import CorpusSpec

    if not tokenizers:
        if len(what) != 1 or text:
            raise ValueError(
                f"inspect: expected one recipe, found {len(what)} words and {len(text)} texts; "
                "with --tokenizers it takes a target and sources, and --text"
            )
        return load_recipe(what[0], overrides)
    if len(what) < 2 or not text:
        raise ValueError(
            f"inspect --tokenizers: expected a target, at least one source and --text FILE, found {len(what)} models "
            f"and {len(text)} texts"
        )
    named = [
        NamedModel(name=name, model=model_of(model)) for name, model in zip(distinct_names(what), what, strict=True)
    ]
    domains = distinct_names([PurePosixPath(path).stem.replace("*", "all") for path in text])
    documents = tuple(
        documents_of([path]).model_copy(update={"domain": domain}) for path, domain in zip(text, domains, strict=True)
    )
    corpus = CorpusSpec(documents=documents, short_documents="drop")
    return Recipe(name=f"into {named[0].name}", target=named[0], sources=tuple(named[1:]), corpus=corpus)
