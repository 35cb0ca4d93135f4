"""Align: one source's distributions over one shard, brought onto the target's tokens and vocabulary."""

from fusion_core.alignment import AlignmentStrategy, summarize
from tasks.artifacts import AlignedRef, Runtime, ScoredRef, VocabMapRef
from tasks.formats.shards import read_pair, read_scored, write_aligned
from tasks.step import Output, step
from tasks.storage.store import open_store


@step(version=3)
def align(
    source: ScoredRef,
    target: ScoredRef,
    vocab_map: VocabMapRef,
    strategy: AlignmentStrategy,
    *,
    runtime: Runtime,
    out: Output,
) -> AlignedRef:
    """The source's rows on the target's: `aligned.safetensors`. Both have read the same shard."""
    store = open_store(runtime)
    pair = read_pair(store.fetch(vocab_map))
    aligned = strategy(read_scored(store.fetch(source)), read_scored(store.fetch(target)).tokens, pair)
    write_aligned(out.dir, aligned)
    out.facts |= vars(summarize(aligned))
    return out.ref(AlignedRef)
