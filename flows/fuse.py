"""`fuse_models`: the whole fusion of many models into one, as a Prefect flow.

    corpus -> shards --+--> extract(target, shard) -------------------------+
                       +--> extract(source, shard) --> align(source, shard) -+--> fuse(shard) --> train --> evaluate
    models: download --^   map_vocab(source) ---------^                                                  --> report

The body is that picture. A vocabulary mapping that needs counts puts `count_pairs(source, shard)` between extracting
and mapping; aligning a source then begins when all its shards are counted. Calling the flow within
`tasks.step.planning()` computes nothing and lists what a run needs.
"""

import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.states import Failed

from flows.comparison import Baseline
from flows.corpora import build_shards
from flows.execution import executing
from flows.measures import measure_models
from flows.recipe import NamedModel, Recipe, RecipeFile, RecipeForm, ScratchModel
from flows.run_page import run_page
from fusion_core.spec import Spec
from tasks.align import align
from tasks.artifacts import FusedRef, ModelRef, Ref, ReportRef, Runtime, ShardRef
from tasks.count import count_pairs
from tasks.download import download
from tasks.extract import extract
from tasks.fuse import fuse
from tasks.lineage import RunRecord, record_run
from tasks.report import Role, report
from tasks.scratch import init_model, train_tokenizer
from tasks.step import Future, Planned, ShardsFailed, is_planning, planning, settle
from tasks.store import open_store
from tasks.train import train
from tasks.vocab import map_vocab


class FusionResult(Spec):
    """What a run leaves: the fused model, and the report where the recipe evaluates."""

    model: ModelRef
    report: ReportRef | None = None


@flow(name="fuse-models", flow_run_name="{recipe.name}")
def fuse_models(recipe: RecipeForm, runtime: Runtime = Runtime()) -> Any:  # Any: FusionResult, or a failed state
    """Fuses the recipe's sources into its target. Every step is cached: run again, only what is missing is computed.

    Args:
        recipe: What is fused into what, on which text, and how.
        runtime: Where and how it is computed; changes no result.
    """
    if isinstance(recipe, RecipeFile):
        recipe = recipe.load()
    if is_planning():
        return _fuse(recipe, runtime)
    open_store(runtime).probe()
    keep = keeper(recipe.name, recipe, runtime)
    planned = _plan(recipe, runtime)
    keep([entry.ref for entry in planned])  # until it ends: what this run may still need is no garbage
    missing = sum(entry.cached_bytes is None for entry in planned)
    get_run_logger().info("of what is known now, %d are cached and %d to compute", len(planned) - missing, missing)
    with run_page(recipe, open_store(runtime), lambda: _plan(recipe, runtime)):
        try:
            with executing(runtime):
                result = _fuse(recipe, runtime)
        except ShardsFailed as failure:
            return Failed(message=str(failure), data=failure)
    keep([result.model] if result.report is None else [result.model, result.report])
    return result


def keeper(name: str, recipe: Recipe, runtime: Runtime) -> Callable[[Sequence[Ref]], None]:
    """A function that notes this run in the store, and what is kept for it; again replaces."""
    run_id = flow_run.get_id() or uuid.uuid4().hex
    started = datetime.now(UTC).isoformat(timespec="seconds")

    def keep(refs: Sequence[Ref]) -> None:
        asked = recipe.model_dump(mode="json")
        record = RunRecord(name=name, started_at=started, recipe=asked, refs=list(refs))
        record_run(open_store(runtime), record, run_id=run_id)

    return keep


def _plan(recipe: Recipe, runtime: Runtime) -> list[Planned]:
    with planning() as planned:
        _fuse(recipe, runtime)
    return planned


def _fuse(recipe: Recipe, runtime: Runtime) -> FusionResult:
    target = obtain_model(recipe.target, runtime)
    sources = [obtain_model(source, runtime) for source in recipe.sources]
    shards = build_shards(recipe.corpus, "corpus", runtime)

    # Where every shard must succeed, training without a teacher can begin before there is one.
    alone = _train_alone(recipe, target, shards, runtime) if recipe.min_shards == 1 else None

    own = extract_shards(recipe, recipe.target.name, target, shards, runtime)
    aligned = [
        _extract_and_align(recipe, source.name, model, target, own, shards, runtime)
        for source, model in zip(recipe.sources, sources, strict=True)
    ]
    candidates = [[column[j] for column in aligned] for j in range(len(shards))]
    pairs = zip(own, candidates, strict=True)
    calls = [(mine, others, recipe.fusion, recipe.target_as_teacher) for mine, others in pairs]
    fused = fuse.submit_each(calls, runtime=runtime, label="fuse")
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


def obtain_model(named: NamedModel, runtime: Runtime) -> Future:
    """The model's folder in the store: downloaded, or trained from nothing."""
    spec = named.model
    if not isinstance(spec, ScratchModel):
        return download.submit(spec, runtime=runtime, label=f"download {named.name}")
    shards = build_shards(spec.corpus, f"corpus {named.name}", runtime)
    tokenizer = train_tokenizer.submit(shards, spec.tokenizer, runtime=runtime, label=f"train tokenizer {named.name}")
    untrained = init_model.submit(tokenizer, spec.architecture, runtime=runtime, label=f"init {named.name}")
    return train.submit(untrained, shards, [], spec.training, runtime=runtime, label=f"train {named.name}")


def extract_shards(recipe: Recipe, name: str, model: Future, shards: list[ShardRef], runtime: Runtime) -> list[Future]:
    """The model's distributions over each shard, in order."""
    calls = [(model, shard, recipe.extraction) for shard in shards]
    return extract.submit_each(calls, runtime=runtime, label=f"extract {name}")


def _extract_and_align(
    recipe: Recipe,
    name: str,
    model: Future,
    target: Future,
    own: list[Future],
    shards: list[ShardRef],
    runtime: Runtime,
) -> list[Future]:
    mapping, label = recipe.vocab_mapping, f"map vocabulary {name}"
    if mapping.needs_counts:
        scored = extract_shards(recipe, name, model, shards, runtime)
        counts = _count(recipe, name, scored, own, runtime)
        vocab_map = map_vocab.submit(model, target, mapping, counts, runtime=runtime, label=label)
    else:
        vocab_map = map_vocab.submit(model, target, mapping, runtime=runtime, label=label)
        scored = extract_shards(recipe, name, model, shards, runtime)
    calls = [(read, mine, vocab_map, recipe.alignment) for read, mine in zip(scored, own, strict=True)]
    return align.submit_each(calls, runtime=runtime, label=f"align {name}")


def _count(recipe: Recipe, name: str, scored: list[Future], own: list[Future], runtime: Runtime) -> list[Future]:
    """A source's counts; where shards may fail, of those that didn't."""
    counts = count_pairs.submit_each(zip(scored, own, strict=True), runtime=runtime, label=f"count {name}")
    if recipe.min_shards == 1:
        return counts
    settled = settle(counts, "shards", minimum=recipe.min_shards)
    return [count for count, made in zip(counts, settled, strict=True) if made is not None]


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
        teachers = fuse.submit_each(
            [(mine, [], recipe.fusion, True) for mine in own], runtime=runtime, label=f"fuse {baseline.name}"
        )
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
