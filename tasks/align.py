"""Align: one source's distributions over one shard, brought onto the target's tokens and vocabulary."""

from dataclasses import replace

import torch

from fusion_core.alignment import AlignmentStrategy, summarize
from fusion_core.distributions import take_rows
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
    """The source's rows on the target's: `aligned.safetensors`. Both have read the same shard.

    Of a conversation, rows whose label is no text are absent, whatever the strategy does with rows without a match.
    """
    store = open_store(runtime)
    pair = read_pair(store.fetch(vocab_map))
    scored = read_scored(store.fetch(target))
    aligned = strategy(read_scored(store.fetch(source)), scored.tokens, pair)
    wanted = scored.wanted
    if not bool(wanted.all()):
        aligned = replace(aligned, dist=take_rows(aligned.dist, torch.arange(len(wanted)).where(wanted, -1)))
    write_aligned(out.dir, aligned)
    out.facts |= vars(summarize(aligned, wanted))
    return out.ref(AlignedRef)
