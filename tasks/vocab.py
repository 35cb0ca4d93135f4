"""Map vocabularies: where each token of a source goes in the target's vocabulary."""

from collections.abc import Sequence

from fusion_core.alignment import Pair
from fusion_core.pair_counts import sum_counts
from fusion_core.vocab_mapping import VocabMapping
from tasks.artifacts import CountsRef, ModelRef, Runtime, VocabMapRef
from tasks.formats.shards import read_counts, write_pair
from tasks.models.folders import load_encode, load_tokenizer, load_vocabulary, mid_text_json
from tasks.step import Output, step
from tasks.storage.store import open_store


@step(version=2)
def map_vocab(
    source: ModelRef,
    target: ModelRef,
    mapping: VocabMapping,
    counts: Sequence[CountsRef] = (),
    *,
    runtime: Runtime,
    out: Output,
) -> VocabMapRef:
    """The map, both vocabularies' byte surfaces and the target's tokenizer: all that aligning needs to know.

    `counts`: of this source over every shard, for a mapping that needs them; none for any other.
    """
    if mapping.needs_counts != bool(counts):
        raise ValueError(
            f"vocab_mapping {mapping.kind} takes {'at least one count' if mapping.needs_counts else 'no counts'}, "
            f"found {len(counts)}; count the pairs of each shard exactly where a mapping needs_counts"
        )
    store = open_store(runtime)
    target_folder = store.fetch(target)
    source_vocabulary, target_vocabulary = load_vocabulary(store.fetch(source)), load_vocabulary(target_folder)
    target_tokenizer = mid_text_json(load_tokenizer(target_folder))
    seen = sum_counts([read_counts(store.fetch(ref)) for ref in counts])
    vocab_map = mapping(source_vocabulary, target_vocabulary, load_encode(target_tokenizer), seen)
    write_pair(out.dir, Pair(source_vocabulary, target_vocabulary, vocab_map), target_tokenizer)
    mapped = vocab_map.ids >= 0
    out.facts |= {
        "source_tokens": source_vocabulary.size,
        "target_tokens": target_vocabulary.size,
        "mapped": int(mapped.sum()),
        "targets_reached": len(set(vocab_map.ids[mapped].tolist())),
    }
    return out.ref(VocabMapRef)
