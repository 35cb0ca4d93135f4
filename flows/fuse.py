"""`fuse_models`: the whole fusion of many models into one, as a Prefect flow.

    corpus -> shards --+--> extract(target, shard) -------------------------+
                       +--> extract(source, shard) --> align(source, shard) -+--> fuse(shard) --> train --> evaluate
    models: download --^   map_vocab(source) ---------^                                                  --> report

The body is that picture. A vocabulary mapping that needs counts puts `count_pairs(source, shard)` between extracting
and mapping; aligning a source then begins when all its shards are counted. Calling the flow within
`tasks.step.planning()` computes nothing and lists what a run needs.
"""

import functools
from typing import Any

from prefect import flow, get_run_logger
from prefect.states import Failed

from flows.comparison import Baseline
from flows.corpora import build_recipe_shards
from flows.execution import executing
from flows.fusion_page import summarize_fusion
from flows.keeping import Keeper
from flows.measures import measure_models
from flows.recipe import Recipe, RecipeFile, RecipeForm
from flows.run_page import run_page
from flows.run_tables import Grid
from flows.stages import align_source, extract_shards, fuse_shards, obtain_model, trusting
from fusion_core.spec import Spec
from tasks.artifacts import FusedRef, ModelRef, ReportRef, Runtime, ShardRef
from tasks.report import Role, report
from tasks.secrets import hiding_secrets
from tasks.step import Future, Planned, ShardsFailed, is_planning, planning, settle
from tasks.storage.store import open_store
from tasks.train import train


class FusionResult(Spec):
    """What a run leaves: the fused model, and the report where the recipe evaluates."""

    model: ModelRef
    report: ReportRef | None = None


@flow(name="fuse-models", flow_run_name="{recipe.name}")
@hiding_secrets()
def fuse_models(recipe: RecipeForm, runtime: Runtime = Runtime()) -> Any:  # Any: FusionResult, or a failed state
    """Fuses the recipe's sources into its target. Every step is cached: run again, only what is missing is computed.

    Args:
        recipe: What is fused into what, on which text, and how.
        runtime: Where and how it is computed; changes no result.
    """
    if isinstance(recipe, RecipeFile):
        recipe = recipe.load()
    runtime = trusting(runtime, (recipe.target, *recipe.sources))
    if is_planning():
        return _fuse(recipe, runtime)
    open_store(runtime).probe()
    keeper = Keeper(recipe.name, recipe.model_dump(mode="json"), runtime)
    plan = functools.partial(_plan, recipe, runtime)
    summarize = functools.partial(summarize_fusion, recipe, open_store(runtime))
    with run_page(recipe.name, [Grid()], open_store(runtime), plan, summarize):
        try:
            with keeper.planned(plan) as planned, executing(runtime):
                missing = sum(entry.cached_bytes is None for entry in planned)
                get_run_logger().info("now %d are known to be cached, %d to compute", len(planned) - missing, missing)
                result = _fuse(recipe, runtime)
        except ShardsFailed as failure:
            return Failed(message=str(failure), data=failure)
    keeper.keep([result.model] if result.report is None else [result.model, result.report])
    return result


def _plan(recipe: Recipe, runtime: Runtime) -> list[Planned]:
    with planning() as planned:
        _fuse(recipe, runtime)
    return planned


def _fuse(recipe: Recipe, runtime: Runtime) -> FusionResult:
    target = obtain_model(recipe.target, runtime)
    sources = [obtain_model(source, runtime) for source in recipe.sources]
    shards = build_recipe_shards(recipe, runtime)

    # Where every shard must succeed, training without a teacher can begin before there is one.
    alone = _train_alone(recipe, target, shards, runtime) if recipe.min_shards == 1 else None

    own = extract_shards(recipe, recipe.target.name, target, shards, runtime)
    aligned = [
        align_source(recipe, source.name, model, target, own, shards, runtime)
        for source, model in zip(recipe.sources, sources, strict=True)
    ]
    fused = fuse_shards(recipe, own, aligned, runtime)
    settled = settle(fused, "shards", minimum=recipe.min_shards)
    kept = [j for j, teacher in enumerate(settled) if teacher is not None]
    texts, teachers = [shards[j] for j in kept], [settled[j] for j in kept]

    label = f"train {recipe.target.name} fused"
    trained = train.submit(target, texts, teachers, recipe.training, runtime=runtime, label=label)
    if recipe.evaluation is None:
        return FusionResult(model=trained.result())
    baselines = alone or _train_alone(recipe, target, texts, runtime)
    baselines |= _train_on_itself(recipe, target, texts, [own[j] for j in kept], runtime)
    rows: list[tuple[str, Role, Future]] = []
    if recipe.evaluation.sources:
        rows += [(source.name, "source", model) for source, model in zip(recipe.sources, sources, strict=True)]
    rows.append((recipe.target.name, "target", target))
    rows += [(baseline.name, "baseline", baselines[baseline.name]) for baseline in recipe.evaluation.baselines]
    rows.append(("fused", "fused", trained))
    made = _report(recipe, rows, [[column[j] for j in kept] for column in aligned], teachers, runtime)
    return FusionResult(model=trained.result(), report=made.result())


def _train_alone(recipe: Recipe, target: Future, shards: list[ShardRef], runtime: Runtime) -> dict[str, Future]:
    """The baselines of language modelling alone, by name."""
    return {
        baseline.name: train.submit(
            target, shards, [], (baseline.training or recipe.training).without_teacher(),
            runtime=runtime, label=f"train {recipe.target.name} {baseline.name}",
        )
        for baseline in _baselines(recipe, "none")
    }  # fmt: skip


def _train_on_itself(
    recipe: Recipe, target: Future, shards: list[ShardRef], own: list[Future], runtime: Runtime
) -> dict[str, Future]:
    """The baselines whose teacher is the target as it was, by name."""
    trained = {}
    for baseline in _baselines(recipe, "target"):
        teachers = fuse_shards(recipe, own, [], runtime, target_as_teacher=True, label=f"fuse {baseline.name}")
        label = f"train {recipe.target.name} {baseline.name}"
        spec = baseline.training or recipe.training
        trained[baseline.name] = train.submit(target, shards, teachers, spec, runtime=runtime, label=label)
    return trained


def _baselines(recipe: Recipe, teacher: str) -> list[Baseline]:
    chosen = recipe.evaluation.baselines if recipe.evaluation else ()
    return [baseline for baseline in chosen if baseline.teacher == teacher]


def _report(
    recipe: Recipe,
    rows: list[tuple[str, Role, Future]],
    aligned: list[list[Future]],
    fused: list[FusedRef],
    runtime: Runtime,
) -> Future:
    assert recipe.evaluation is not None
    table = measure_models(rows, recipe.evaluation, runtime)
    return report.submit(
        recipe.name, table, [source.name for source in recipe.sources], aligned, fused, recipe.model_dump(mode="json"),
        runtime=runtime, label="report",
    )  # fmt: skip
