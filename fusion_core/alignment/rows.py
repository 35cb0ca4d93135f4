"""Which rows of two tokenizers speak of the same thing, and what the source spent between them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fusion_core.alignment.entries import NO_ROW
from fusion_core.alignment.pair import Pair
from fusion_core.costs import running_sum
from fusion_core.types import NO_BOUNDARY, Scored, Tokens
from fusion_core.vocabulary import Vocabulary


@dataclass(frozen=True)
class Standing:
    """Where each target row stands in the source's tokens.

    row: the source row at the same boundary, or, inside a source token, the last one before it; -1 for none.
    inside: bytes of the source's next token that the target has read; 0 at a common boundary.
    """

    row: Int[Tensor, "target_tokens"]
    inside: Int[Tensor, "target_tokens"]


def common_rows(source: Tokens, target: Tokens) -> Int[Tensor, "target_tokens"]:
    """For each target row, the source row at the same boundary of the same document, or -1.

    Raises:
        ValueError: another number of documents, or a document's boundaries don't rise.
    """
    before = _rows_before(source, target)
    places = (before != NO_ROW).nonzero().squeeze(1)
    same = source.boundaries[before[places]] == target.boundaries[places]
    before[places] = before[places].where(same, NO_ROW)
    return before


def stand(source: Tokens, target: Tokens, pair: Pair, common: Int[Tensor, "target_tokens"], bridge: bool) -> Standing:
    """Where the target's rows stand: at the source row they share, with `bridge` also inside the source's tokens.

    At the start of a text a row stands nowhere where only one of the two models is still going to read a prefix space:
    their next tokens aren't the same event. (With `bridge`, a source that is still going to read it stands inside.)
    None is to be read at a conversation's first turn, which is cut without one, behind two tokens or more.
    """
    row = common.where(_same_prefix(source, target, common, pair), NO_ROW)
    inside = torch.zeros_like(row)
    if not bridge or not len(source.ids):
        return Standing(row, inside)
    before = _rows_before(source, target)
    between = ((row == NO_ROW) & (before != NO_ROW)).nonzero().squeeze(1)
    last = source.doc_offsets[1:][source.doc_of_token] - 1
    between = between[before[between] < last[before[between]]]
    here, after = before[between], before[between] + 1
    length = pair.source_bytes.to(row.device).lengths[source.ids[after]]
    read = length - (source.boundaries[after] - target.boundaries[between])
    span = source.boundaries[after] - source.boundaries[here]
    spelled = (span == length) | ((span == length - 1) & (source.boundaries[here] == 0))
    within = (source.boundaries[after] != NO_BOUNDARY) & spelled & (read > 0) & (read < length)
    row[between[within]], inside[between[within]] = here[within], read[within]
    return Standing(row, inside)


def spent_nats(source: Scored) -> Float[Tensor, "source_tokens"]:
    """float64 nats that the source spent on its tokens up to and with each one; documents follow each other.

    Rows that are absent and have no nll, those of quarantined documents and of other speakers, count nothing.

    Raises:
        ValueError: a row with a label has no finite nll.
    """
    last_rows = source.tokens.doc_offsets[1:] - 1
    nll = source.nll.double().index_fill(0, last_rows[last_rows >= 0], 0.0)
    nll = nll.masked_fill(nll.isnan() & ~source.dist.present, 0.0)
    if not bool(nll.isfinite().all()):
        raise ValueError(
            f"every row with a label must have a finite nll, but {int((~nll.isfinite()).sum())} of {len(nll)} have "
            "none; leave the documents out that the source could not score"
        )
    return nll.cumsum(0) - nll


def spans(
    source: Scored, spent: Float[Tensor, "source_tokens"], target: Tokens, common: Int[Tensor, "target_tokens"]
) -> tuple[Float[Tensor, "target_tokens"], Int[Tensor, "target_tokens"]]:
    """`Aligned.span_nll` and `Aligned.span_tokens` from cumulative nats and common rows.

    Labels without nll, those that are no text of a conversation, are none of the tokens.
    """
    places = (common != NO_ROW).nonzero().squeeze(1)
    rows, doc = common[places], target.doc_of_token[places]
    first_of_doc = doc.diff(prepend=doc[:1] - 1) != 0
    span_nll = torch.full(common.shape, torch.nan, dtype=torch.float32, device=spent.device)
    span_nll[places] = spent[rows].diff(prepend=spent[rows[:1]]).masked_fill(first_of_doc, 0.0).float()
    span_tokens = torch.zeros_like(common)
    tokens = running_sum((~source.nll.isnan()).long())[rows]
    span_tokens[places] = tokens.diff(prepend=tokens[:1]).masked_fill(first_of_doc, 0)
    return span_nll, span_tokens


def _rows_before(source: Tokens, target: Tokens) -> Int[Tensor, "target_tokens"]:
    """For each target row, the last source row of the document at its boundary or before it, or -1."""
    if source.num_docs != target.num_docs:
        raise ValueError(
            f"source and target must hold the same documents, but found {source.num_docs} and {target.num_docs}; "
            "align shards of one corpus"
        )
    rows = torch.full_like(target.boundaries, NO_ROW)
    source_rows, target_rows = _provable(source), _provable(target)
    if not len(source_rows) or not len(target_rows):
        return rows
    stride = 1 + torch.maximum(source.boundaries.max(), target.boundaries.max())
    source_keys = _rising_keys(source, source_rows, stride)
    target_keys = _rising_keys(target, target_rows, stride)
    found = torch.searchsorted(source_keys, target_keys, right=True) - 1
    same_doc = (found >= 0) & (source_keys[found] // stride == target_keys // stride)
    rows[target_rows] = source_rows[found].where(same_doc, NO_ROW)
    return rows


def _provable(tokens: Tokens) -> Int[Tensor, "rows"]:
    return (tokens.boundaries != NO_BOUNDARY).nonzero().squeeze(1)


def _rising_keys(tokens: Tokens, rows: Tensor, stride: Tensor) -> Int[Tensor, "rows"]:
    """One number per row that orders rows by document, then boundary."""
    keys = tokens.doc_of_token[rows] * stride + tokens.boundaries[rows]
    if not bool((keys.diff() > 0).all()):
        fall = rows[1:][keys.diff() <= 0][0]
        raise ValueError(
            f"boundaries must rise within a document, but token {int(fall)} ends at {int(tokens.boundaries[fall])}, "
            "not behind the boundary before it; take them from token_boundaries"
        )
    return keys


def _same_prefix(source: Tokens, target: Tokens, common: Tensor, pair: Pair) -> Bool[Tensor, "target_tokens"]:
    """Whether the two models agree, at each target row, on having a prefix space still to read."""

    def awaits_prefix(tokens: Tokens, vocabulary: Vocabulary) -> Tensor:
        lengths = vocabulary.surface_lengths.to(tokens.ids.device)[tokens.ids]
        # what a template says before a turn leaves no prefix space to read, unless the next token has one
        begins = tokens.boundaries.roll(-1) == lengths.roll(-1) - 1
        begins[tokens.doc_offsets[:-1][tokens.doc_offsets.diff() > 0]] = True
        return begins & (tokens.boundaries == 0) & (lengths <= 0) & vocabulary.adds_prefix_space

    places = (common != NO_ROW).nonzero().squeeze(1)
    awaited = awaits_prefix(target, pair.target)
    same = torch.ones_like(awaited)
    same[places] = awaited[places] == awaits_prefix(source, pair.source)[common[places]]
    return same
