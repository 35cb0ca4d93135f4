"""The stages that flows are made of: models, what they say about each shard, what reaches the target, teachers."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from flows.corpora import build_shards
from flows.recipe import NamedModel, Recipe, ScratchModel
from fusion_core.spec import Spec
from tasks.align import align
from tasks.artifacts import Runtime, ShardRef
from tasks.count import count_pairs
from tasks.download import download
from tasks.extract import extract
from tasks.fuse import fuse
from tasks.models.folders import HubModel
from tasks.scratch import init_model, train_tokenizer
from tasks.step import Future, settle
from tasks.train import train
from tasks.vocab import map_vocab


class HasModel(Protocol):
    """An entry of a recipe, or a candidate."""

    @property
    def model(self) -> Spec:
        """What is meant."""


def trusting(runtime: Runtime, models: Iterable[HasModel]) -> Runtime:
    """The runtime for these models: code that came with models may run where one of them is trusted by name."""
    trusted = any(isinstance(named.model, HubModel) and named.model.trust_remote_code for named in models)
    return runtime.model_copy(update={"model_code": True}) if trusted else runtime


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


def align_source(
    recipe: Recipe,
    name: str,
    model: Future,
    target: Future,
    own: list[Future],
    shards: list[ShardRef],
    runtime: Runtime,
) -> list[Future]:
    """What a source says about each shard, on the target's tokens and vocabulary. `own`: the target's extraction."""
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


def fuse_shards(
    recipe: Recipe,
    own: Sequence[Future],
    aligned: Sequence[Sequence[Future]],
    runtime: Runtime,
    target_as_teacher: bool | None = None,
    label: str = "fuse",
) -> list[Future]:
    """The teacher of each shard. `aligned[i][j]`: source `i` on shard `j`; without any the target teaches itself."""
    teaches = recipe.target_as_teacher if target_as_teacher is None else target_as_teacher
    calls = [(mine, [column[j] for column in aligned], recipe.fusion, teaches) for j, mine in enumerate(own)]
    return fuse.submit_each(calls, runtime=runtime, label=label)


def _count(recipe: Recipe, name: str, scored: list[Future], own: list[Future], runtime: Runtime) -> list[Future]:
    """A source's counts; where shards may fail, of those that didn't."""
    counts = count_pairs.submit_each(zip(scored, own, strict=True), runtime=runtime, label=f"count {name}")
    if recipe.min_shards == 1:
        return counts
    settled = settle(counts, "shards", minimum=recipe.min_shards)
    return [count for count, made in zip(counts, settled, strict=True) if made is not None]
