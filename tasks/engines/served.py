"""What servers and serving libraries give of a prompt, the likeliest tokens of each position, as a document's rows."""

import math
from collections.abc import Mapping, Sequence

import torch

from fusion_core.distributions import ExtractionMode, TopK
from fusion_core.types import TokenDist
from tasks.engines.forward import NOT_FINITE
from tasks.engines.scoring import DocumentRows

Candidates = Mapping[int, float]
"""Log-probabilities under the full softmax, by token: the likeliest, and the label wherever it lies."""


def check_mode(mode: ExtractionMode, engine: str) -> TopK:
    """The mode, which a server can give. Raises `ValueError` for one that needs more than the likeliest tokens."""
    if not isinstance(mode, TopK) or mode.temperature != 1:
        found = mode.kind if mode.temperature == 1 else f"temperature {mode.temperature}"
        raise ValueError(
            f"engine {engine}: expected mode top_k at temperature 1, found {found}; servers give the likeliest tokens "
            "alone, so use the transformers engine for other modes"
        )
    return mode


def rows_of(
    document: int, ids: Sequence[int], candidates: Sequence[Candidates], k: int, vocab_size: int
) -> DocumentRows:
    """A document's rows from the candidates of each: the `k` likeliest, falling, ties by id, and the tail of the rest.

    ids: the document's tokens. candidates: one per token, of what follows it. The tail is 1 less what is kept, in
    float64: as exact as the server's numbers, and no more. Ids outside the vocabulary (padded rows) are tail.

    Raises:
        ValueError: candidates for another number of tokens, fewer of them than `k`, or without a label.
    """
    if len(candidates) != len(ids):
        raise ValueError(f"expected candidates for each of {len(ids)} tokens, found {len(candidates)}; pass all")
    fewest = min(map(len, candidates), default=k)
    if fewest < min(k, vocab_size):
        raise ValueError(
            f"mode.k: expected {k} candidates per token, found {fewest}: the server gives no more; set k to {fewest}, "
            "or raise the server's limit (vLLM: --max-logprobs)"
        )
    missing = next((i for i, label in enumerate(ids[1:]) if label not in candidates[i]), None)
    if missing is not None:
        raise ValueError(
            f"expected the log-probability of every token of the text, found none of token {missing + 1} "
            f"(id {ids[missing + 1]}); use a server that gives it beside the likeliest"
        )
    nll = torch.tensor([-candidates[i][label] for i, label in enumerate(ids[1:])] + [math.nan], dtype=torch.float32)
    real = [[(-logprob, token) for token, logprob in row.items() if token < vocab_size] for row in candidates]
    kept = [sorted(row)[:k] for row in real]
    logprobs = torch.tensor([-cost for row in kept for cost, _ in row], dtype=torch.float64)
    if not bool(logprobs.isfinite().all()) or not bool(nll[:-1].isfinite().all()):
        return DocumentRows(document, None, nll, NOT_FINITE)
    widths = torch.tensor([len(row) for row in kept])
    row_of_entry = torch.arange(len(kept)).repeat_interleave(widths)
    mass = torch.zeros(len(kept), dtype=torch.float64).index_add_(0, row_of_entry, logprobs.exp())
    tail = torch.log1p(-mass.clamp(max=1.0)).float()
    dist = TokenDist(
        row_offsets=torch.cat([widths.new_zeros(1), widths.cumsum(0)]),
        ids=torch.tensor([token for row in kept for _, token in row], dtype=torch.int64),
        logprobs=logprobs.float(),
        tail_logprob=tail,
        unknown_logprob=torch.full_like(tail, -torch.inf),
        vocab_size=vocab_size,
    )
    return DocumentRows(document, dist, nll)
