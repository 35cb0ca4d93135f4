"""Count: what the target puts in the place of one source's tokens, over one shard."""

from fusion_core.alignment import tally_pairs
from tasks.artifacts import CountsRef, Runtime, ScoredRef
from tasks.formats.shards import read_scored, write_counts
from tasks.step import Output, step
from tasks.storage.store import open_store


@step(version=1)
def count_pairs(source: ScoredRef, target: ScoredRef, *, runtime: Runtime, out: Output) -> CountsRef:
    """The pairs of tokens that begin at the same byte: `counts.safetensors`. Both have read the same shard."""
    store = open_store(runtime)
    tokens = read_scored(store.fetch(target)).tokens
    counts = tally_pairs(read_scored(store.fetch(source)).tokens, tokens)
    write_counts(out.dir, counts)
    counted = int(counts.counts.sum())
    out.facts |= {
        "pairs": len(counts.counts),
        "counted": counted,
        "counted_share": round(counted / max(len(tokens.ids), 1), 6),  # of the target's rows
    }
    return out.ref(CountsRef)
