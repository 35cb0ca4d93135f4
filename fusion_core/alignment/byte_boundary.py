"""From a source's rows to the target's where both stand at the same byte."""

import warnings
from dataclasses import replace
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from fusion_core.alignment.context import LEFT_OUT, find_targets
from fusion_core.alignment.continuations import NO_READ, Continuations, continue_text
from fusion_core.alignment.entries import NO_ROW, cast_logprobs, log_sum, make_rows
from fusion_core.alignment.pair import Pair
from fusion_core.alignment.projection import project_rows
from fusion_core.alignment.rows import Standing, common_rows, spans, spent_nats, stand
from fusion_core.alignment.source_text import SourceText
from fusion_core.distributions import absent_rows, choose_rows
from fusion_core.spec import Spec
from fusion_core.types import NO_BOUNDARY, Aligned, Scored, TokenDist, Tokens

Rows = TypeVar("Rows", TokenDist, Continuations)


class ByteBoundary(Spec):
    """A target row takes the source row that stands at the same byte of the same document.

    Ids go through the vocabulary map, in context where it says so (`Canonical`), and candidates that meet on one target
    id are summed. What the source didn't keep stays missing: its unknown mass is unknown here, and so are candidates
    with bytes that the map sends nowhere. Candidates without bytes that go nowhere (a begin token, say) lie outside
    every kept id, so they join the tail. Candidates with which the target wouldn't stand at this boundary are left out,
    and the rest is divided by what is left: both models are conditioned on the same event.

    Standing at the same byte isn't enough: what a model expects is conditioned on how its own tokenizer cut the text
    (Phan et al. 2024, arXiv 2410.09303). `cover`, `bridge` and `lookahead` refine that; see `continuations`.

    Why `tail` isn't "strict" by default: in 99 to 100 % of rows (top-10 and top-64 of Zipf-like rows, MPT and Llama-2
    and three small vocabularies) some source id that wasn't kept maps to a kept one, so strict throws nearly every tail
    away; the mass on such ids is on average at most 4 % of a top-10's tail and 1.6 % of a row.

    Why `max_unknown` is a half by default: of the true rows that `tests.bench.exactness` enumerates, 3 candidates kept,
    those aligned are off by 0.113 without the covers in doubt (0), by 0.085 at a quarter, by 0.083 from a half on; at 1
    a row is no better and 0.12 of it is unknown instead of 0.09.
    """

    kind: Literal["byte_boundary"] = Field(default="byte_boundary", title="Same byte of the text")
    tail: Literal["outside", "strict"] = Field(
        default="outside",
        title="What the source's tail becomes",
        description=(
            "outside: mass outside the kept tokens, as if no token that wasn't kept would map to a kept one. "
            "strict: unknown mass in every row where one may."
        ),
    )
    cover: Literal[0, 1, 2] = Field(
        default=0,
        title="Covering tokens",
        description=(
            "How many source tokens before a boundary may have been a longer one that runs past it. "
            "For the mapping in context; with another one it does harm."
        ),
    )
    lookahead: int = Field(
        default=0, ge=0, le=8, title="Look ahead",
        description="How many times a source token shorter than the target's next is followed by what came after it.",
    )  # fmt: skip
    bridge: bool = Field(
        default=False, title="Bridge tokens", description="Also fill target rows that stand inside a source token."
    )
    max_unknown: float = Field(
        default=0.5, ge=0, le=1, title="Most unknown mass",
        description="A row whose unkept covering tokens may weigh more than this share goes without covers.",
    )  # fmt: skip

    def __call__(self, source: Scored, target: Tokens, pair: Pair) -> Aligned:
        """One row per target token.

        At the start of a text the row is absent where only one of the two models is still going to read a prefix space:
        their next tokens aren't the same event.

        Raises:
            ValueError: the two don't hold the same number of documents, a document's boundaries don't rise, a row with
                a label has no finite nll, the shards aren't of the pair's vocabularies, or the pair lacks the `encode`
                that these options need.
        """
        pair.check(source, target)
        if self.cover and not pair.vocab_map.in_context:
            warnings.warn("cover makes rows worse without vocab_mapping canonical; use both or none", stacklevel=2)
        common = common_rows(source.tokens, target)
        spent = spent_nats(source)
        standing = stand(source.tokens, target, pair, common, self.bridge)
        if self.cover or self.lookahead or pair.vocab_map.in_context:
            dist = self._refine(source, spent, standing, target, pair)
        else:
            inside = standing.inside > 0
            dist = project_rows(self._trust(source.dist, pair), standing.row.where(~inside, NO_ROW), pair)
            if bool(inside.any()):
                within = Standing(standing.row.where(inside, NO_ROW), standing.inside)
                dist = choose_rows(inside, self._refine(source, spent, within, target, pair), dist)
        return Aligned(dist, *spans(source, spent, target, common))

    def _refine(
        self, source: Scored, spent: Float[Tensor, "source_tokens"], standing: Standing, target: Tokens, pair: Pair
    ) -> TokenDist:
        """What the source says about each row where the target stands somewhere, piece of text by piece of text."""
        dtype = torch.promote_types(source.dist.logprobs.dtype, torch.float32)
        if not len(source.tokens.ids):
            return cast_logprobs(absent_rows(len(target.ids), pair.target.size, target.ids.device), dtype)
        text = SourceText(source, spent, pair, with_labels=self.lookahead > 0)
        found = continue_text(text, standing, _label_ends(target), self.cover, self.lookahead, self.max_unknown)
        targets = find_targets(found, source.tokens, target, pair)
        if self.tail == "strict":
            found = _doubt_tails(found)
        return cast_logprobs(_count(found, targets, pair), dtype)

    def _trust(self, dist: TokenDist, pair: Pair) -> TokenDist:
        """The source's rows with the tail that they keep where nothing but their ids is looked at."""
        if self.tail == "outside":
            return dist
        return _doubt_tails(dist, None if self.bridge else ~_certain_tails(dist, pair))


def _label_ends(target: Tokens) -> Int[Tensor, "target_tokens"]:
    """The boundary where each row's label ends; -1 where that isn't proven, or there is no label."""
    ends = target.boundaries.roll(-1)
    ends[target.doc_offsets[1:][target.doc_offsets.diff() > 0] - 1] = NO_BOUNDARY
    return ends


def _count(found: Continuations, targets: Int[Tensor, "entries"], pair: Pair) -> TokenDist:
    """The continuations as distributions over the target's ids."""
    num_rows = len(found.tail_logprob)
    maps, left_out = targets >= 0, targets == LEFT_OUT
    has_bytes = (found.read != NO_READ) | pair.homeless.to(targets.device)[found.token]
    nowhere, lost = ~maps & ~left_out & ~has_bytes, ~maps & ~left_out & has_bytes

    def mass(where: Tensor) -> Tensor:
        return log_sum(found.row[where], found.logprobs[where], num_rows)

    tail = torch.logaddexp(found.tail_logprob, mass(nowhere))
    unknown = torch.logaddexp(found.unknown_logprob, mass(lost))
    row, logprobs = found.row[maps], found.logprobs[maps]
    if bool(left_out.any()):
        remains = torch.logaddexp(torch.logaddexp(mass(maps), tail), unknown)
        # a row that loses all it had is absent, not 0 / 0
        remains = remains.where((mass(left_out) > -torch.inf) & (remains > -torch.inf), 0.0)
        logprobs, tail, unknown = logprobs - remains[row], tail - remains, unknown - remains
    return make_rows(row, targets[maps], logprobs, tail, unknown, pair.target.size)


def _certain_tails(dist: TokenDist, pair: Pair) -> Bool[Tensor, "rows"]:
    """The rows where no source id outside the candidates maps to a target id of theirs, or to who knows where."""
    device, row = dist.ids.device, dist.row_of_entry
    homeless, targets = pair.homeless.to(device), pair.vocab_map.ids.to(device)[dist.ids.long()]
    maps = targets >= 0
    kept = torch.unique(row[maps] * pair.target.size + targets[maps])
    preimages = pair.preimages.to(device)[kept % pair.target.size]
    sources_kept = torch.bincount(row[maps], minlength=dist.num_rows)
    sources_of_kept = torch.zeros_like(sources_kept).index_add_(0, kept // pair.target.size, preimages)
    homeless_kept = torch.bincount(row[homeless[dist.ids.long()]], minlength=dist.num_rows)
    return (sources_kept == sources_of_kept) & (homeless_kept == homeless.sum())


def _doubt_tails(rows: Rows, doubted: Bool[Tensor, "rows"] | None = None) -> Rows:
    """The same with the tail of the doubted rows unknown, by default of all."""
    tail = rows.tail_logprob
    doubted = torch.ones_like(tail, dtype=torch.bool) if doubted is None else doubted
    unknown = torch.logaddexp(rows.unknown_logprob, tail.masked_fill(~doubted, -torch.inf))
    return replace(rows, tail_logprob=tail.masked_fill(doubted, -torch.inf), unknown_logprob=unknown)
