"""`extract_source`: one model of a recipe reads the corpus, the part of a fusion that wants a machine of its own."""

import functools
from typing import Any

from prefect import flow
from prefect.states import Failed

from flows.corpora import build_recipe_shards
from flows.execution import executing
from flows.fusion_page import summarize_fusion
from flows.keeping import Keeper
from flows.recipe import NamedModel, Recipe, RecipeFile, RecipeForm
from flows.run_page import run_page
from flows.run_tables import Grid
from flows.stages import extract_shards, obtain_model, trusting
from tasks.artifacts import Runtime, ScoredRef
from tasks.secrets import hiding_secrets
from tasks.step import Planned, ShardsFailed, is_planning, planning, settle
from tasks.storage.store import open_store


@flow(name="extract-source", flow_run_name="extract {source} of {recipe.name}")
@hiding_secrets()
def extract_source(
    recipe: RecipeForm, source: str, runtime: Runtime = Runtime()
) -> Any:  # Any: refs, or a failed state
    """What one model of a recipe says about every shard; a fusion by the same recipe finds it done.

    Args:
        recipe: The recipe that the fusion will run by.
        source: The name that the model has in it; the target's, too.
        runtime: Where and how it is computed; changes no result.
    """
    if isinstance(recipe, RecipeFile):
        recipe = recipe.load()
    runtime = trusting(runtime, (recipe.target, *recipe.sources))
    models = {model.name: model for model in (recipe.target, *recipe.sources)}
    if source not in models:
        raise ValueError(f"source: expected one of {', '.join(models)}, found {source!r}")
    if is_planning():
        return _extract(recipe, models[source], runtime)
    open_store(runtime).probe()
    keeper = Keeper(f"{recipe.name}: {source}", recipe.model_dump(mode="json"), runtime)
    name, plan = f"{recipe.name} {source}", functools.partial(_plan, recipe, models[source], runtime)
    summarize = functools.partial(summarize_fusion, recipe, open_store(runtime))
    with run_page(name, [Grid()], open_store(runtime), plan, summarize):
        try:
            with keeper.planned(plan), executing(runtime):
                scored = _extract(recipe, models[source], runtime)
        except ShardsFailed as failure:
            return Failed(message=str(failure), data=failure)
    keeper.keep(scored)  # garbage would be what no fusion has come to yet
    return scored


def _plan(recipe: Recipe, named: NamedModel, runtime: Runtime) -> list[Planned]:
    with planning() as planned:
        _extract(recipe, named, runtime)
    return planned


def _extract(recipe: Recipe, named: NamedModel, runtime: Runtime) -> list[ScoredRef]:
    shards = build_recipe_shards(recipe, runtime)
    scored = extract_shards(recipe, named.name, obtain_model(named, runtime), shards, runtime)
    return [ref for ref in settle(scored, "shards", minimum=recipe.min_shards) if ref is not None]
