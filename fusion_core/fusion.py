"""From many teachers to one: the candidates of a shard, weighed by what the text cost them.

A strategy is called with the candidates (the target's own rows through `as_candidate`, if it teaches too,
and each source's aligned rows) and the target's tokens. It sees a list: the caller decides the order, and
ties go to the earlier candidate. Costs are compared in fp32, over the bytes that every candidate scores; see
`fusion_core.costs`. Where nothing can be compared, the first candidate with a present row teaches.

The original code's rules, which break with most of this, are strategies of their own: `fusion_core.reference.fusion`.

By document is the paper's way (Wan et al. 2024). A row's choice by document or block depends on the
text behind it, its label included, as the paper's does; by token it depends on the text before it alone, and only
candidates present in that row are asked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from fusion_core.candidates import Strategy, check_candidates
from fusion_core.costs import Score, SharedBytes, block_costs, running_sum, sequence_costs, token_costs
from fusion_core.distributions import concatenate, mix, take_rows
from fusion_core.reference.extraction import mean_nll
from fusion_core.reference.fusion import ReferenceAvgCE, ReferenceMinCE
from fusion_core.types import NO_BOUNDARY, Aligned, Fused, Scored, Tokens

_SCORE_HELP = (
    "What a document costs a model: bits per byte compares models of any tokenizer; nats per token of the model's own"
    " (the paper's) favours the finer one."
)


class _ByCost(Strategy):
    """What the strategies share that go by what the text cost each candidate."""

    kind: str
    score: Score = Field(default="bits_per_byte", title="Score", description=_SCORE_HELP)
    level: Literal["sequence", "block", "token"] = Field(
        default="sequence",
        title="Level",
        description=(
            "What is judged and taught as one: each document (the paper), each block of packed documents (the original"
            " code), or each token, judged by the text before it."
        ),
    )
    block_tokens: int = Field(
        default=2048, ge=1, title="Block", description="Target tokens of a block; for the level block."
    )
    window_bytes: int = Field(
        default=128, ge=1, title="Window", description="Bytes looked back at; for the level token."
    )

    def _row_costs(self, candidates: Sequence[Aligned], target: Tokens) -> Float[Tensor, "candidates rows"]:
        match self.level:
            case "sequence":
                return sequence_costs(candidates, target, self.score)
            case "block":
                return block_costs(candidates, target, self.score, self.block_tokens)
            case "token":
                return token_costs(candidates, target, self.score, self.window_bytes)


class MinCE(_ByCost):
    """The cheapest candidate teaches."""

    kind: Literal["min_ce"] = "min_ce"

    def fuse(self, candidates: Sequence[Aligned], target: Tokens) -> Fused:
        """The rows of the cheapest candidate of each document, block or row."""
        chosen = self._row_costs(candidates, target).argmin(0)
        num_rows = len(target.ids)
        index = chosen * num_rows + torch.arange(num_rows, device=chosen.device)
        dist = take_rows(concatenate([candidate.dist for candidate in candidates]), index)
        return Fused(dist=dist, winner=chosen.masked_fill(~dist.present, -1))


class AvgCE(_ByCost):
    """All candidates teach, with weights softmax(-cost / tau).

    The weights differ by a factor of e where the costs differ by `tau`; the default makes a tenth of a bit
    per byte matter.

    Where the candidates keep the same ids, or everything, training on the mixture is training on the weighted sum of
    their divergences, if these are linear in the teacher (SoftCrossEntropy; ForwardKL up to a constant). Where they
    don't, it lacks the tails: one row can't hold masses outside different ids, so the tail of a candidate that
    doesn't keep the whole union is unknown (see `mix`). Its term is left out and its weight goes to the label, which
    may be a kept id: the kept ids are pulled up by more than the sum would, by that weight at most. The fewer
    candidates a row keeps, the more; `MinCE` leaves tails as they are.
    """

    kind: Literal["avg_ce"] = "avg_ce"
    tau: float = Field(
        default=0.1, gt=0, title="Temperature", description="Gap in cost that changes the weights e-fold."
    )

    def fuse(self, candidates: Sequence[Aligned], target: Tokens) -> Fused:
        """The mixture by what each document, block or window cost the candidates."""
        return _blend(candidates, (-self._row_costs(candidates, target) / self.tau).softmax(0))


class StaticWeights(Strategy):
    """All candidates teach, with the same weights in every document, whatever it cost them."""

    kind: Literal["static_weights"] = "static_weights"
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        title="Weights", description="One per candidate, in their order; only their ratios count."
    )

    @model_validator(mode="after")
    def _some_weight(self) -> "StaticWeights":
        if not sum(self.weights) > 0:
            raise ValueError(f"expected weights with a sum above 0, found {self.weights}; give one candidate some")
        return self

    def fuse(self, candidates: Sequence[Aligned], target: Tokens) -> Fused:
        """The mixture by the given weights; ValueError for another number of them."""
        if len(self.weights) != len(candidates):
            raise ValueError(
                f"expected one weight per candidate, found {len(self.weights)} weights for {len(candidates)}"
                " candidates; list the target's too if it teaches"
            )
        weights = torch.tensor(self.weights, dtype=torch.float32, device=target.ids.device) / sum(self.weights)
        return _blend(candidates, weights.unsqueeze(1).expand(-1, len(target.ids)))


FusionStrategy = Annotated[MinCE | AvgCE | StaticWeights | ReferenceMinCE | ReferenceAvgCE, Field(discriminator="kind")]


@dataclass(frozen=True)
class FusionFacts:
    """What fusion did to some shards; facts of several shards add up with `+`.

    documents, rows, rows_covered: how many there were, of rows those that are wanted, and how many have a teacher.
    documents_won, rows_won: per candidate; a document is won by who won most of its rows, ties to the earlier.
    nats, bytes: per candidate, its cost of the compared bytes and how many they were.
    """

    documents: int
    rows: int
    rows_covered: int
    documents_won: tuple[int, ...]
    rows_won: tuple[int, ...]
    nats: tuple[float, ...]
    bytes: tuple[int, ...]

    @property
    def bits_per_byte(self) -> tuple[float, ...]:
        """Per candidate, over all bytes that were compared; NaN for a candidate that never was."""
        pairs = zip(self.nats, self.bytes, strict=True)
        return tuple(nats / (math.log(2) * size) if size else math.nan for nats, size in pairs)

    def __add__(self, other: "FusionFacts") -> "FusionFacts":
        return FusionFacts(
            documents=self.documents + other.documents,
            rows=self.rows + other.rows,
            rows_covered=self.rows_covered + other.rows_covered,
            documents_won=tuple(a + b for a, b in zip(self.documents_won, other.documents_won, strict=True)),
            rows_won=tuple(a + b for a, b in zip(self.rows_won, other.rows_won, strict=True)),
            nats=tuple(a + b for a, b in zip(self.nats, other.nats, strict=True)),
            bytes=tuple(a + b for a, b in zip(self.bytes, other.bytes, strict=True)),
        )


def summarize_fusion(
    fused: Fused,
    candidates: Sequence[Aligned],
    target: Tokens,
    only: Bool[Tensor, "docs"] | None = None,
    wanted: Bool[Tensor, "rows"] | None = None,
) -> FusionFacts:
    """Who won how much, and what the compared bytes cost each candidate, of all documents or those marked in `only`.

    wanted: the rows that a teacher is wanted for, `Scored.wanted` of the target; by default all.

    Raises ValueError for candidates that aren't the target's, or other than one mark per document or row.
    """
    check_candidates(candidates, target)
    if only is not None and len(only) != target.num_docs:
        raise ValueError(f"expected {target.num_docs} marks, one per document, found {len(only)}; or pass none")
    number, documents = len(candidates), target.num_docs
    counted = torch.ones_like(target.doc_offsets[1:], dtype=torch.bool) if only is None else only
    counted_row = counted[target.doc_of_token]
    if wanted is not None:
        if len(wanted) != len(counted_row):
            raise ValueError(f"expected {len(counted_row)} marks, one per row, found {len(wanted)}; or pass none")
        counted_row = counted_row & wanted
    covered = (fused.winner >= 0) & counted_row
    cell = (target.doc_of_token * number + fused.winner)[covered]
    rows_won = torch.bincount(cell, minlength=documents * number).view(documents, number)
    winners = rows_won.argmax(1)[rows_won.any(1)]
    shared = SharedBytes.of(candidates, target)
    spent = shared.spend_documents()
    return FusionFacts(
        documents=int(counted.sum()),
        rows=int(counted_row.sum()),
        rows_covered=int(covered.sum()),
        documents_won=tuple(torch.bincount(winners, minlength=number).tolist()),
        rows_won=tuple(rows_won.sum(0).tolist()),
        nats=tuple((spent.nats * shared.takes_part * counted).sum(1).tolist()),
        bytes=tuple((spent.bytes * shared.takes_part * counted).sum(1).tolist()),
    )


def as_candidate(scored: Scored) -> Aligned:
    """The target's own rows as a candidate: a row with a boundary ends the span since the boundary before."""
    tokens = scored.tokens
    rows = (tokens.boundaries != NO_BOUNDARY).nonzero().squeeze(1)
    document = tokens.doc_of_token[rows]
    before = rows.roll(1)
    is_first = torch.ones_like(rows, dtype=torch.bool)
    is_first[1:] = document[1:] != document[:-1]
    before = torch.where(is_first, rows, before)

    cost_before = running_sum(scored.nll.double().nan_to_num(nan=0.0))
    span_nll = torch.full_like(scored.nll, torch.nan, dtype=torch.float32)
    span_nll[rows] = (cost_before[rows] - cost_before[before]).float()
    span_tokens = torch.zeros_like(tokens.ids)
    tokens_before = running_sum((~scored.nll.isnan()).long())
    span_tokens[rows] = tokens_before[rows] - tokens_before[before]
    return Aligned(scored.dist, span_nll, span_tokens, mean_nll(scored.nll, tokens.doc_offsets))


def _blend(candidates: Sequence[Aligned], weights: Float[Tensor, "candidates rows"]) -> Fused:
    dist = mix([candidate.dist for candidate in candidates], weights)
    present = torch.stack([candidate.dist.present for candidate in candidates])
    heaviest = (weights * present).argmax(0)
    return Fused(dist=dist, winner=heaviest.masked_fill(~dist.present, -1))
