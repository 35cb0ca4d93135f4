"""Extract: one model reads one shard and leaves its next-token distributions."""

import json
from functools import partial
from typing import Annotated

from pydantic import Field

from fusion_core.distributions import ExtractionMode, TopK
from fusion_core.spec import Spec
from fusion_core.types import Scored
from tasks.artifacts import ModelRef, Runtime, ScoredRef, ShardRef
from tasks.corpora.documents import Document, read_documents
from tasks.engines import Engine, Problem, TransformersEngine, score_tokens
from tasks.engines.chunks import Chunk, cut_chunks, join_chunks, score_chunks
from tasks.engines.encoding import Encoded, Encoder
from tasks.engines.quarantine import check_share, encode_readable
from tasks.formats.shards import SCORED, read_scored, write_scored
from tasks.step import Output, step
from tasks.storage.partial import Parts
from tasks.storage.store import open_store

_KEY_DIGITS = 15  # of a shard's digest: 60 bits, so that adding rows to them stays within int64


class ExtractionSpec(Spec):
    """What is kept of each distribution, and which engine computes it."""

    mode: ExtractionMode = Field(TopK(), title="Kept per row", description="Which candidates of each distribution.")
    engine: Engine = Field(TransformersEngine(), title="Engine", description="What runs the model.")
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01,
        title="Quarantine at most",
        description="Share of a shard's documents that the model may fail to read before the shard fails.",
    )


def _devices_needed(*, spec: ExtractionSpec, runtime: Runtime, **arguments: object) -> int | None:
    return spec.engine.devices_needed(runtime)


@step(version=2, on_device=_devices_needed)
def extract(model: ModelRef, shard: ShardRef, spec: ExtractionSpec, *, runtime: Runtime, out: Output) -> ScoredRef:
    """The model's distributions over the shard: `scored.safetensors`.

    Finished chunks of it outlive a killed attempt; the next one goes on after them.
    """
    store = open_store(runtime)
    documents, encoder = read_documents(store, shard), Encoder.load(store, model)
    encoder.check(documents)
    vocab_size = encoder.vocabulary.size
    scorer = spec.engine(encoder.folder, spec.mode, vocab_size, runtime)
    first_key = first_key_of(shard)
    chunks, done = cut_chunks(documents), 0

    def tell(part: int, whole: int, unit: str) -> None:
        out.progress(done + len(chunks[len(read)]) * part // max(whole, 1), len(documents), "documents")

    def score(encoded: Encoded, before: int) -> tuple[Scored, dict[int, Problem]]:
        scored, found = score_tokens(scorer, encoded.tokens, vocab_size, first_key=first_key + before, progress=tell)
        return encoded.hide_other_rows(scored), found

    parts = Parts(store, out.address)
    read: list[Chunk] = []
    problems: dict[int, Problem] = {}
    resumed = 0
    encode = partial(encode_readable, encoder, window=encoder.window)
    for chunk, was_there in score_chunks(chunks, encode, score, parts):
        problems |= {done + number: problem for number, problem in chunk.problems.items()}
        done += len(chunks[len(read)])
        read.append(chunk)
        resumed += was_there
    check_share(f"shard {shard.index}", documents, problems, spec.max_quarantined)
    write_scored(out.dir, join_chunks([chunk.scored for chunk in read]), runtime.compress)
    out.afterwards.append(parts.remove)
    _describe(out, documents, problems)
    if unseen := encoder.count_unseen_tools(documents):
        out.facts["tools_unseen"] = unseen
    out.facts |= {"chunks": len(chunks), "chunks_resumed": resumed, **scorer.facts}
    return out.ref(ScoredRef)


def first_key_of(shard: ShardRef) -> int:
    """The key of the shard's first row, on which its random draws depend; the rows after it count up from it.

    Keys of shards lie anywhere below 2**60: of 1,000 shards with a million rows each, two share a key with a
    probability of 1e-6, and draw the same numbers for the rows that do, from other distributions.
    """
    return int(shard.digest[:_KEY_DIGITS], 16)


def _describe(out: Output, documents: list[Document], problems: dict[int, Problem]) -> None:
    """Writes `documents.json`, and facts of what was stored, which are the same however many attempts it took."""
    scored = read_scored(out.dir)
    num_tokens, num_rows = max(len(scored.tokens.ids), 1), max(int(scored.dist.present.sum()), 1)
    (out.dir / "documents.json").write_text(json.dumps([{"id": d.id, "domain": d.domain} for d in documents]))
    out.facts |= {
        "documents": len(documents),
        "tokens": len(scored.tokens.ids),
        "kept_mass": round(float(scored.dist.logprobs.double().exp().sum()) / num_rows, 6),
        "nats": round(float(scored.nll.double().nansum()), 3),
        "quarantined": [documents[number].id for number in sorted(problems)],
        "problems": {documents[number].id: problems[number].text for number in sorted(problems)},
        "bytes_per_token": round((out.dir / SCORED).stat().st_size / num_tokens, 1),
    }
