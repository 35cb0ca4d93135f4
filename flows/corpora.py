"""A corpus within a flow: collected where it needs collecting, built, and its shards."""

from collections.abc import Sequence

from flows.keeping import tell_corpus
from flows.recipe import Recipe
from tasks.artifacts import Runtime, ShardRef
from tasks.corpora.documents import shards_of
from tasks.corpus import CorpusSpec, Installed, build_corpus
from tasks.texts import InstalledTexts, collect_texts


def build_shards(spec: CorpusSpec, label: str, runtime: Runtime, held_out: Sequence[ShardRef] = ()) -> list[ShardRef]:
    """The corpus's shards, in order, once it is built; in a plan none while it isn't.

    held_out: text that `spec.decontamination` keeps out of it.
    """
    texts = [
        collect_texts.submit(InstalledTexts(), runtime=runtime, label="collect texts")
        for source in spec.documents
        if isinstance(source, Installed)
    ]
    corpus = build_corpus.submit(spec, texts, held_out, runtime=runtime, label=label).result()
    tell_corpus(corpus)
    return shards_of(corpus, runtime)


def build_recipe_shards(recipe: Recipe, runtime: Runtime) -> list[ShardRef]:
    """The shards of a recipe's corpus, which has nothing of the evaluation's text where it asks for that."""
    held_out: list[ShardRef] = []
    if recipe.corpus.decontamination is not None and recipe.evaluation is not None:
        held_out = build_shards(recipe.evaluation.corpus, "corpus held-out", runtime)
    return build_shards(recipe.corpus, "corpus", runtime, held_out)
