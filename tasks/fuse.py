"""Fuse: many distributions over one shard become one teacher."""

import json

import torch

from fusion_core.fusion import FusionStrategy, as_candidate, summarize_fusion
from tasks.artifacts import AlignedRef, FusedRef, Runtime, ScoredRef
from tasks.formats.shards import read_aligned, read_scored, write_fused
from tasks.step import Output, step
from tasks.storage.store import open_store


@step(version=1)
def fuse(
    target: ScoredRef,
    aligned: list[AlignedRef],
    strategy: FusionStrategy,
    target_as_teacher: bool,
    *,
    runtime: Runtime,
    out: Output,
) -> FusedRef:
    """The teacher: `fused.safetensors`. The target, where it teaches, comes first; the sources keep their order."""
    store = open_store(runtime)
    folder = store.fetch(target)
    scored = read_scored(folder)
    candidates = [read_aligned(store.fetch(ref)) for ref in aligned]
    if target_as_teacher:
        candidates.insert(0, as_candidate(scored))
    if not candidates:
        raise ValueError(
            "fusion: expected at least one teacher, found no source and target_as_teacher false; add a source"
        )
    fused = strategy(candidates, scored.tokens)
    write_fused(out.dir, fused)
    domains = [document["domain"] for document in json.loads((folder / "documents.json").read_text())]
    marks = {domain: torch.tensor([d == domain for d in domains]) for domain in dict.fromkeys(domains)}
    out.facts["domains"] = {
        domain: vars(summarize_fusion(fused, candidates, scored.tokens, only, scored.wanted))
        for domain, only in marks.items()
    }
    return out.ref(FusedRef)
