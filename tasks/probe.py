"""Probe: what a model writes by itself after held-out prompts, and the symptoms of it."""

import json
from collections import defaultdict
from dataclasses import asdict

from pydantic import Field

from fusion_core.spec import Spec
from tasks.artifacts import ModelRef, ProbeRef, Runtime, ShardRef
from tasks.corpora.documents import Document, read_documents
from tasks.engines import Dtype, pick_device, tokens_per_batch
from tasks.evaluation.gate_rules import PROBE, ProbedText
from tasks.evaluation.symptoms import find_symptoms, learn_customs
from tasks.models.folders import encode_documents, load_model, load_tokenizer, vocabulary_of
from tasks.models.generation import continue_greedily
from tasks.step import Output, step
from tasks.storage.store import Store, open_store


class ProbeSpec(Spec):
    """Which prompts a model continues, and how far."""

    prompts: int = Field(24, gt=0, title="Prompts per domain", description="The first documents that are long enough.")
    prompt_tokens: int = Field(32, gt=0, title="Tokens per prompt", description="From a document's beginning.")
    max_tokens: int = Field(64, gt=0, title="Tokens to write", description="At most; repetition needs some room.")
    dtype: Dtype = Field("float32", title="Precision", description="Of the weights while writing.")


@step(version=1, on_device=True)
def probe(model: ModelRef, shards: list[ShardRef], spec: ProbeSpec, *, runtime: Runtime, out: Output) -> ProbeRef:
    """Greedy continuations with their symptoms (`probe.json`); facts hold the means per domain.

    A domain whose documents are all too short for a prompt is left out.
    """
    store = open_store(runtime)
    folder = store.fetch(model)
    tokenizer = load_tokenizer(folder)
    vocabulary = vocabulary_of(tokenizer)
    network = load_model(folder, spec.dtype, pick_device(runtime.device))
    domains = _by_domain(store, shards)
    customs = {name: learn_customs(piece.text for piece in pieces) for name, pieces in domains.items()}
    chosen, prompts = [], []
    for pieces in domains.values():
        tokens = encode_documents(tokenizer, vocabulary, [p.text for p in pieces], [False] * len(pieces))
        lengths, starts = tokens.doc_offsets.diff().tolist(), tokens.doc_offsets.tolist()
        long = [i for i, length in enumerate(lengths) if length > spec.prompt_tokens][: spec.prompts]
        chosen += [pieces[i] for i in long]
        prompts += [tokens.ids[starts[i] : starts[i] + spec.prompt_tokens] for i in long]
    batch = tokens_per_batch(runtime.batch_tokens, network.device)
    written = continue_greedily(
        network, vocabulary, prompts, spec.max_tokens, batch_tokens=batch, progress=out.progress
    )
    texts = []
    for piece, ids, found in zip(chosen, prompts, written, strict=True):
        prompt = b"".join(vocabulary.surfaces[i] or b"" for i in ids.tolist()).decode(errors="replace")
        symptoms = find_symptoms(prompt, found.text, customs[piece.domain])
        texts.append(
            ProbedText(
                document=piece.id, domain=piece.domain, prompt=prompt, text=found.text, ended=found.ended,
                symptoms=asdict(symptoms),
            )
        )  # fmt: skip
    (out.dir / PROBE).write_text(json.dumps([t.model_dump() for t in texts], ensure_ascii=False), encoding="utf-8")
    out.facts |= {"texts": len(texts), "ended": sum(t.ended for t in texts), "domains": _means(texts)}
    return out.ref(ProbeRef)


def _by_domain(store: Store, shards: list[ShardRef]) -> dict[str, list[Document]]:
    """The first piece of every document, by domain."""
    seen: set[str] = set()
    domains: dict[str, list[Document]] = defaultdict(list)
    for shard in shards:
        for piece in read_documents(store, shard):
            if piece.id not in seen:
                seen.add(piece.id)
                domains[piece.domain].append(piece)
    return domains


def _means(texts: list[ProbedText]) -> dict[str, dict[str, float]]:
    sums: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = defaultdict(int)
    for text in texts:
        counts[text.domain] += 1
        here = sums.setdefault(text.domain, dict.fromkeys(text.symptoms, 0.0))
        for name, value in text.symptoms.items():
            here[name] += value
    return {domain: {name: value / counts[domain] for name, value in here.items()} for domain, here in sums.items()}
