"""A corpus within a flow: collected where it needs collecting, built, and its shards."""

from tasks.artifacts import Runtime, ShardRef
from tasks.corpus import CorpusSpec, Installed, build_corpus
from tasks.documents import shards_of
from tasks.texts import InstalledTexts, collect_texts


def build_shards(spec: CorpusSpec, label: str, runtime: Runtime) -> list[ShardRef]:
    """The corpus's shards, in order, once it is built; in a plan none while it isn't."""
    texts = [
        collect_texts.submit(InstalledTexts(), runtime=runtime, label="collect texts")
        for source in spec.documents
        if isinstance(source, Installed)
    ]
    return shards_of(build_corpus.submit(spec, texts, runtime=runtime, label=label).result(), runtime)
