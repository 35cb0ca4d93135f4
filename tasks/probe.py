"""Probe: what a model writes by itself after held-out prompts, and the symptoms of it."""

import json
from collections import defaultdict
from dataclasses import asdict, replace
from itertools import pairwise

from pydantic import Field
from torch import Tensor

from fusion_core.spec import Spec
from tasks.artifacts import ModelRef, ProbeRef, Runtime, ShardRef
from tasks.corpora.documents import Document, read_documents
from tasks.engines import Dtype, Problem, pick_device, tokens_per_batch
from tasks.engines.encoding import Encoder
from tasks.engines.quarantine import encode_readable
from tasks.evaluation.gate_rules import PROBE, ProbedText
from tasks.evaluation.symptoms import find_symptoms, learn_customs
from tasks.models.folders import load_model
from tasks.models.generation import continue_greedily
from tasks.step import Output, step
from tasks.storage.store import Store, open_store


class ProbeSpec(Spec):
    """Which prompts a model continues, and how far."""

    prompts: int = Field(24, gt=0, title="Prompts per domain", description="The first documents that are long enough.")
    prompt_tokens: int = Field(
        32,
        gt=0,
        title="Tokens per prompt",
        description="From a document's beginning; of a conversation always all before the assistant's first words.",
    )
    max_tokens: int = Field(64, gt=0, title="Tokens to write", description="At most; repetition needs some room.")
    dtype: Dtype = Field("float32", title="Precision", description="Of the weights while writing.")


@step(version=1, on_device=True)
def probe(model: ModelRef, shards: list[ShardRef], spec: ProbeSpec, *, runtime: Runtime, out: Output) -> ProbeRef:
    """Greedy continuations with their symptoms (`probe.json`); facts hold the means per domain.

    Documents that the model can't read, or that are too short for a prompt, are left out, and domains without others.
    """
    store = open_store(runtime)
    encoder = Encoder.load(store, model)
    vocabulary = encoder.vocabulary
    network = load_model(encoder.folder, spec.dtype, pick_device(runtime.device))
    domains = _by_domain(store, shards)
    customs = {name: learn_customs(piece.text for piece in pieces) for name, pieces in domains.items()}
    chosen, prompts, left_out = list[Document](), list[Tensor](), list[str]()
    for pieces in domains.values():
        begun, problems = _prompts(encoder, pieces, spec.prompt_tokens)
        found = zip(pieces, begun, strict=True)
        left_out += [pieces[number].id for number in problems]
        long = [(piece, ids) for piece, ids in found if ids is not None][: spec.prompts]
        chosen += [piece for piece, _ in long]
        prompts += [ids for _, ids in long]
    batch = tokens_per_batch(runtime.batch_tokens, network.device)
    written = continue_greedily(
        network, vocabulary, prompts, spec.max_tokens, batch_tokens=batch, progress=out.progress
    )
    texts = []
    for piece, ids, answer in zip(chosen, prompts, written, strict=True):
        prompt = b"".join(vocabulary.surfaces[i] or b"" for i in ids.tolist()).decode(errors="replace")
        symptoms = find_symptoms(prompt, answer.text, customs[piece.domain])
        texts.append(
            ProbedText(
                document=piece.id, domain=piece.domain, prompt=prompt, text=answer.text, ended=answer.ended,
                symptoms=asdict(symptoms),
            )
        )  # fmt: skip
    (out.dir / PROBE).write_text(json.dumps([t.model_dump() for t in texts], ensure_ascii=False), encoding="utf-8")
    out.facts |= {"texts": len(texts), "ended": sum(t.ended for t in texts), "domains": _means(texts)}
    if left_out:
        out.facts["left_out"] = left_out
    return out.ref(ProbeRef)


def _prompts(
    encoder: Encoder, pieces: list[Document], prompt_tokens: int
) -> tuple[list[Tensor | None], dict[int, Problem]]:
    """What the model is to go on with of each piece, None for one that is too short; and which it can't read."""
    encoder.check(pieces)
    encoded, problems = encode_readable(encoder, [replace(piece, final=False) for piece in pieces], None)
    starts, found = encoded.tokens.doc_offsets.tolist(), list[Tensor | None]()
    for start, stop in pairwise(starts):
        said = encoded.is_text[start:stop].nonzero()
        length = int(said[0]) if len(said) and said[0] else prompt_tokens
        found.append(encoded.tokens.ids[start : start + length] if stop - start > length else None)
    return found, problems


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
