"""Extract: one model reads one shard and leaves its next-token distributions."""

import json
from typing import Annotated

from pydantic import Field

from fusion_core.distributions import ExtractionMode, TopK
from fusion_core.spec import Spec
from tasks.artifacts import ModelRef, Runtime, ScoredRef, ShardRef
from tasks.documents import read_documents
from tasks.engines import TransformersEngine, check_window, score_tokens
from tasks.models import context_window, encode_documents, load_config, load_tokenizer, vocabulary_of
from tasks.shards import write_scored
from tasks.step import Output, step
from tasks.store import open_store

_ROWS_PER_SHARD = 2**40  # more than any shard has: the keys of random draws never meet


class ExtractionSpec(Spec):
    """What is kept of each distribution, and which engine computes it."""

    mode: ExtractionMode = Field(TopK(), title="Kept per row", description="Which candidates of each distribution.")
    engine: TransformersEngine = Field(TransformersEngine(), title="Engine", description="What runs the model.")
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01,
        title="Quarantine at most",
        description="Share of a shard's documents that may have NaN rows before it fails.",
    )


@step(version=1, on_device=True)
def extract(model: ModelRef, shard: ShardRef, spec: ExtractionSpec, *, runtime: Runtime, out: Output) -> ScoredRef:
    """The model's distributions over the shard: `scored.safetensors`."""
    store = open_store(runtime)
    folder = store.fetch(model)
    documents = read_documents(store, shard)
    tokenizer = load_tokenizer(folder)
    vocabulary = vocabulary_of(tokenizer)
    tokens = encode_documents(tokenizer, vocabulary, [d.text for d in documents], [d.final for d in documents])
    check_window(context_window(load_config(folder)), tokens, [len(d.text.encode()) for d in documents])
    scorer = spec.engine(folder, spec.mode, vocabulary.size, runtime)
    first_key = int(shard.digest[:5], 16) * _ROWS_PER_SHARD
    scored, quarantined = score_tokens(scorer, tokens, vocabulary.size, first_key=first_key, progress=out.progress)
    if len(quarantined) > spec.max_quarantined * len(documents):
        ids = ", ".join(documents[d].id for d in list(quarantined)[:3])
        raise ValueError(
            f"shard {shard.index}: expected at most {spec.max_quarantined:.0%} documents with NaN or infinite logits, "
            f"found {len(quarantined)} of {len(documents)} (first: {ids}); "
            "try engine.dtype float32 or raise max_quarantined"
        )
    write_scored(out.dir, scored)
    kept = scored.dist.logprobs.exp().sum() / max(scored.dist.num_rows, 1)
    out.facts |= {
        "documents": len(documents),
        "tokens": int(tokens.ids.shape[0]),
        "kept_mass": round(float(kept), 6),
        "nats": round(float(scored.nll.double().nansum()), 3),
        "quarantined": [documents[d].id for d in quarantined],
        "bytes_per_token": round(sum(p.stat().st_size for p in out.dir.iterdir()) / max(tokens.ids.shape[0], 1), 1),
    }
    (out.dir / "documents.json").write_text(json.dumps([{"id": d.id, "domain": d.domain} for d in documents]))
    return out.ref(ScoredRef)
