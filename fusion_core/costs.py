"""What a text costs the candidates of a fusion, per row: the numbers that a strategy decides by.

Costs are compared over the bytes that every candidate scores: between rows of a document where all have a finite
`span_nll`. A candidate with no present row in a document, or with fewer than two finite spans, takes no part there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fusion_core.types import NO_BOUNDARY, Aligned, Tokens

Score = Literal["bits_per_byte", "nats_per_token"]


@dataclass(frozen=True)
class SharedBytes:
    """The rows of a shard where the candidates can be compared, and what each has spent up to them.

    rows: the shared rows, rising; document: the document of each.
    nats, tokens: per candidate, cumulative over the shard; only differences within a document mean anything.
    ends: the byte of its document where each shared row stands.
    takes_part: which candidates are compared in which document.
    """

    rows: Int[Tensor, "shared"]
    document: Int[Tensor, "shared"]
    nats: Float[Tensor, "candidates shared"]
    tokens: Int[Tensor, "candidates shared"]
    ends: Int[Tensor, "shared"]
    takes_part: Bool[Tensor, "candidates docs"]

    @classmethod
    def of(cls, candidates: Sequence[Aligned], target: Tokens) -> "SharedBytes":
        """The shared rows of these candidates."""
        spans = torch.stack([candidate.span_nll for candidate in candidates]).double()
        tokens = torch.stack([candidate.span_tokens for candidate in candidates])
        scored = spans.isfinite() & (target.boundaries != NO_BOUNDARY)
        takes_part = present_documents(candidates, target) & (_count_per_document(scored, target) >= 2)
        document = target.doc_of_token
        shared = (scored | ~takes_part[:, document]).all(0) & takes_part.any(0)[document]
        rows = shared.nonzero().squeeze(1)
        nats = spans.nan_to_num(nan=0.0).cumsum(1)[:, rows]
        return cls(rows, document[rows], nats, tokens.cumsum(1)[:, rows], target.boundaries[rows], takes_part)

    def spend(self, start: Int[Tensor, "spans"], stop: Int[Tensor, "spans"]) -> "Spent":
        """What lies between pairs of shared rows, given as positions in `rows`."""
        nats, tokens = self.nats[:, stop] - self.nats[:, start], self.tokens[:, stop] - self.tokens[:, start]
        return Spent(nats, tokens, self.ends[stop] - self.ends[start])

    def spend_documents(self) -> "Spent":
        """What lies between the first and the last shared row of each document; no bytes where there are not two."""
        number = torch.bincount(self.document, minlength=self.takes_part.shape[1])
        stop = number.cumsum(0)
        comparable = number >= 2
        found = self.spend((stop - number)[comparable], (stop - 1)[comparable])
        nats = self.nats.new_zeros(self.takes_part.shape)
        tokens, num_bytes = torch.zeros_like(nats, dtype=torch.int64), torch.zeros_like(number)
        nats[:, comparable], tokens[:, comparable], num_bytes[comparable] = found.nats, found.tokens, found.bytes
        return Spent(nats, tokens, num_bytes)


@dataclass(frozen=True)
class Spent:
    """What some stretches of text cost each candidate; `bytes` is 0 where nothing can be compared."""

    nats: Float[Tensor, "candidates spans"]
    tokens: Int[Tensor, "candidates spans"]
    bytes: Int[Tensor, "spans"]

    def costs(self, score: Score) -> Float[Tensor, "candidates spans"]:
        """In the score's unit; 0 for stretches without bytes."""
        per = self.bytes * math.log(2) if score == "bits_per_byte" else self.tokens
        return (self.nats / per).where(self.bytes > 0, 0.0)


def sequence_costs(candidates: Sequence[Aligned], target: Tokens, score: Score) -> Float[Tensor, "candidates rows"]:
    """fp32 cost of each row's document for each candidate; inf for one that can't teach it, never all of them.

    Where nothing can be compared, the first candidate with a present row costs 0 and the others inf.
    """
    costs, comparable = _document_costs(candidates, target, score)
    costs = _fall_back(costs, comparable, present_documents(candidates, target))
    return costs.float()[:, target.doc_of_token]


def block_costs(
    candidates: Sequence[Aligned], target: Tokens, score: Score, block_tokens: int
) -> Float[Tensor, "candidates rows"]:
    """fp32 cost of each row's block for each candidate: its documents' costs, averaged over the block's tokens.

    A block is `block_tokens` consecutive tokens of the shard, whatever document they are of, as when documents are
    packed; the last one may be shorter. Documents that can't be compared don't count; a candidate that takes no
    part in one that counts is out (inf). Where that leaves nobody, as for `sequence_costs`.
    """
    of_document, comparable = _document_costs(candidates, target, score)
    document = target.doc_of_token
    block = torch.arange(len(document), device=document.device) // block_tokens
    num_blocks = -(-len(document) // block_tokens)
    counts = comparable[document]
    number = torch.bincount(block[counts], minlength=num_blocks)
    total = of_document.new_zeros(len(candidates), num_blocks)
    total.index_add_(1, block[counts], of_document[:, document[counts]])
    present = torch.stack([candidate.dist.present for candidate in candidates])
    present_in_block = torch.zeros_like(total).index_add_(1, block, present.to(total)) > 0
    return _fall_back(total / number.clamp(min=1), number > 0, present_in_block).float()[:, block]


def token_costs(
    candidates: Sequence[Aligned], target: Tokens, score: Score, window_bytes: int
) -> Float[Tensor, "candidates rows"]:
    """fp32 cost, at each row, of the bytes before it for each candidate; inf for one that is absent in that row.

    The window goes from the last shared row at or before this one back to a shared row at least `window_bytes`
    before, or to the first of the document. A row's label lies behind its boundary, so no choice depends on it.
    Where nothing was compared yet, those that take part cost 0. Where nobody is present, the first costs 0.
    """
    shared = SharedBytes.of(candidates, target)
    document = target.doc_of_token
    present = torch.stack([candidate.dist.present for candidate in candidates])
    costs = shared.nats.new_zeros(present.shape)
    if len(shared.rows):
        here = torch.searchsorted(shared.rows, torch.arange(len(document), device=document.device), right=True) - 1
        read = (here >= 0) & (shared.document[here.clamp(min=0)] == document)
        start = _window_starts(shared, window_bytes)[here[read]]
        costs[:, read] = shared.spend(start, here[read]).costs(score)
    takes_part = shared.takes_part[:, document] | ~shared.takes_part.any(0)[document]
    costs = costs.masked_fill(~(present & takes_part), torch.inf)
    return _fall_back(costs, costs.isfinite().any(0), present).float()


def present_documents(candidates: Sequence[Aligned], target: Tokens) -> Bool[Tensor, "candidates docs"]:
    """Which candidates have a present row in which documents."""
    present = torch.stack([candidate.dist.present for candidate in candidates])
    return _count_per_document(present, target) > 0


def running_sum(values: Tensor) -> Tensor:
    """The sum of everything before each position of the last axis, one longer than `values`."""
    return torch.nn.functional.pad(values.cumsum(-1), (1, 0))


def _document_costs(candidates: Sequence[Aligned], target: Tokens, score: Score) -> tuple[Tensor, Tensor]:
    """Costs [candidates, docs], inf for who takes no part, and which documents can be compared."""
    shared = SharedBytes.of(candidates, target)
    spent = shared.spend_documents()
    return spent.costs(score).masked_fill(~shared.takes_part, torch.inf), spent.bytes > 0


def _fall_back(costs: Tensor, comparable: Tensor, present: Tensor) -> Float[Tensor, "candidates groups"]:
    """The costs, or where nothing can be compared or nobody is left: 0 for the first who is present, inf for others."""
    first = present.int().argmax(0)
    instead = torch.full_like(costs, torch.inf).scatter(0, first.unsqueeze(0), 0.0)
    return costs.where(comparable & costs.isfinite().any(0), instead)


def _window_starts(shared: SharedBytes, window_bytes: int) -> Int[Tensor, "shared"]:
    """For each shared row, the position in `shared.rows` where its window begins."""
    stride = 1 + shared.ends.max()
    keys = shared.document * stride + shared.ends
    first_of_document = torch.searchsorted(shared.document, shared.document)
    wanted = shared.document * stride + (shared.ends - window_bytes).clamp(min=-1)
    return torch.maximum(torch.searchsorted(keys, wanted, right=True) - 1, first_of_document)


def _count_per_document(flags: Bool[Tensor, "candidates rows"], target: Tokens) -> Int[Tensor, "candidates docs"]:
    before = running_sum(flags.long())
    return before[:, target.doc_offsets[1:]] - before[:, target.doc_offsets[:-1]]
