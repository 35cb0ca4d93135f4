"""The paper's alignments: a target row takes the row of the source token that dynamic time warping matched it with."""

from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from pydantic import Field, model_validator
from torch import Tensor

from fusion_core.alignment.entries import NO_ROW, cast_logprobs, gather_entries, log_sum, make_rows
from fusion_core.alignment.pair import Pair
from fusion_core.alignment.projection import project_rows
from fusion_core.alignment.rows import common_rows, spans, spent_nats
from fusion_core.dtw import Sequences, warp
from fusion_core.reference.extraction import mean_nll
from fusion_core.spec import Spec
from fusion_core.types import Aligned, Scored, TokenDist, Tokens
from fusion_core.vocabulary import NOWHERE, Vocabulary


class _Warped(Spec):
    """What `ExactDTW` and `MinEditDTW` have in common."""

    _through_map: ClassVar[bool]  # whether tokens that the vocabulary map joins count as the same

    unmatched: Literal["absent", "label"] = Field(
        default="absent",
        title="Rows without a match",
        description="absent: they carry no teacher. label: all mass on the token that really comes next.",
    )
    reference: bool = Field(
        default=False,
        title="As in the original",
        description=(
            "Rows without a match put all mass on the token just read, the first of colliding candidates wins, and "
            "what is left of a row is scaled up to one."
        ),
    )
    first_marker: bool = Field(
        default=False,
        title="Lend the first token a word marker",
        description=(
            "At the first token of a text, a source piece without a word marker counts as if it had the one that the "
            "target's has. For sources like GPT-NeoX, which put no space before a text."
        ),
    )

    @model_validator(mode="after")
    def _check(self) -> "_Warped":
        if self.reference and self.unmatched != "absent":
            raise ValueError(
                f"reference rows without a match follow the original, but found unmatched: {self.unmatched}; "
                "leave out one of the two"
            )
        return self

    def __call__(self, source: Scored, target: Tokens, pair: Pair) -> Aligned:
        """One row per target token; ids through the pair's vocabulary map.

        Raises:
            ValueError: the two don't hold the same number of documents, a document's boundaries don't rise, a row with
                a label has no finite nll, the shards aren't of the pair's vocabularies, or one has no pieces.
        """
        pair.check(source, target)
        span_nll, span_tokens = spans(source, spent_nats(source), target, common_rows(source.tokens, target))
        matched = match_tokens(source.tokens, target, pair)
        row = matched.where(self._agree(source.tokens, target, matched, pair), NO_ROW)
        if self.reference:
            dist = _project_as_original(source.dist, row, target, pair)
        else:
            dist = project_rows(source.dist, row, pair)
            if self.unmatched == "label":
                dist = _fill_with_labels(dist, row, target)
        dtype = torch.promote_types(source.dist.logprobs.dtype, torch.float32)
        cross_entropy = mean_nll(source.nll, source.tokens.doc_offsets) if self.reference else None
        return Aligned(cast_logprobs(dist, dtype), span_nll, span_tokens, cross_entropy)

    def _agree(
        self, source: Tokens, target: Tokens, matched: Int[Tensor, "target_tokens"], pair: Pair
    ) -> Bool[Tensor, "target_tokens"]:
        """Whether each target token has a match that is the same token."""
        spelled = _Spelling(pair, through_map=self._through_map)
        has_match = matched != NO_ROW
        agrees = torch.zeros_like(has_match)
        agrees[has_match] = spelled.agree(source.ids[matched[has_match]], target.ids[has_match])
        if self.first_marker:
            for place in _first_places(target, pair.target):
                if has_match[place]:
                    source_id, target_id = int(source.ids[matched[place]]), int(target.ids[place])
                    agrees[place] = spelled.agree_at_start(source_id, target_id)
        return agrees


class ExactDTW(_Warped):
    """Matched by dynamic time warping; tokens of equal spelling pass their row on (the paper's exact-match baseline).

    Paths are those of `MinEditDTW`: only what counts as the same token differs.
    """

    kind: Literal["exact_dtw"] = Field(default="exact_dtw", title="Time warping, equal tokens")

    _through_map: ClassVar[bool] = False


class MinEditDTW(_Warped):
    """Matched by dynamic time warping; tokens that are equal or map to each other pass their row on (Wan et al. 2024).

    Costs are edit distances of the pieces without word markers. A target token that the path matches with exactly one
    source token, equal to it as a string (the markers being one) or through the vocabulary map, takes that one's row.
    """

    kind: Literal["min_edit_dtw"] = Field(default="min_edit_dtw", title="Time warping, similar tokens")

    _through_map: ClassVar[bool] = True


def match_tokens(source: Tokens, target: Tokens, pair: Pair) -> Int[Tensor, "target_tokens"]:
    """The source token that each target token is matched with; -1 where there isn't exactly one.

    Raises:
        ValueError: another number of documents, or a vocabulary was built without pieces.
    """
    path = warp(token_sequences(source, pair.source), token_sequences(target, pair.target))
    matches = np.bincount(path.target, minlength=len(target.ids))
    matched = np.full(len(target.ids), NO_ROW, dtype=np.int64)
    matched[path.target] = path.source
    matched[matches != 1] = NO_ROW
    return torch.from_numpy(matched).to(target.ids.device)


def token_sequences(tokens: Tokens, vocabulary: Vocabulary) -> Sequences:
    """The tokens of a shard as strings without word markers."""
    pieces, ids = vocabulary.pieces_marked(""), tokens.ids.cpu().numpy()
    used = np.flatnonzero(np.bincount(ids))
    number: dict[str, int] = {}
    string = np.zeros(len(pieces), dtype=np.int64)
    string[used] = [number.setdefault(pieces[token] or "", len(number)) for token in used.tolist()]
    return Sequences(list(number), string[ids], tokens.doc_offsets.cpu().numpy())


class _Spelling:
    """Which tokens of two vocabularies count as the same one."""

    def __init__(self, pair: Pair, through_map: bool) -> None:
        self._marker = pair.target.word_marker
        self._source = pair.source.pieces_marked(self._marker)
        self._target = pair.target.pieces_marked(self._marker)
        self._number = {piece: i for i, piece in enumerate(dict.fromkeys(self._target)) if piece is not None}
        self._source_number = self._numbers(self._source, missing=-1)
        self._target_number = self._numbers(self._target, missing=-2)
        self._map = pair.vocab_map.ids if through_map else torch.full((pair.source.size,), NOWHERE)
        self._id_of_source = {piece: token for token, piece in reversed(list(enumerate(self._source)))}

    def _numbers(self, pieces: list[str | None], missing: int) -> Int[Tensor, "vocab"]:
        return torch.tensor([self._number.get(p, missing) if p is not None else missing for p in pieces])

    def agree(self, source_ids: Int[Tensor, "n"], target_ids: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
        """Whether each two tokens are spelled alike, or the map leads from one to the other."""
        source_ids, targets = source_ids.cpu(), target_ids.cpu()
        alike = self._source_number[source_ids] == self._target_number[targets]
        return (alike | (self._map.cpu()[source_ids] == targets)).to(target_ids.device)

    def agree_at_start(self, source_id: int, target_id: int) -> bool:
        """`agree` for two tokens, the source's with a word marker in front if only the target's has one."""
        ours, theirs = self._source[source_id] or "", self._target[target_id] or ""
        if theirs.startswith(self._marker) and not ours.startswith(self._marker):
            ours = self._marker + ours
        same = self._id_of_source.get(ours, NOWHERE)
        return ours == theirs or (same != NOWHERE and int(self._map[same]) == target_id)


def _first_places(tokens: Tokens, vocabulary: Vocabulary) -> list[int]:
    """The first token with bytes of each document that has one."""
    places = (vocabulary.surface_lengths[tokens.ids.cpu()] != 0).nonzero().squeeze(1)
    docs = tokens.doc_of_token.cpu()[places]
    is_first = docs.diff(prepend=docs[:1] - 1) != 0
    return [int(place) for place in places[is_first]]


def _fill_with_labels(dist: TokenDist, row: Int[Tensor, "target_tokens"], target: Tokens) -> TokenDist:
    """`dist` with all mass on the label in the rows without a source row; the last row of a document has no label."""
    has_label = torch.ones_like(row, dtype=torch.bool)
    has_label[target.doc_offsets[1:][target.doc_offsets.diff() > 0] - 1] = False
    filled = ((row == NO_ROW) & has_label).nonzero().squeeze(1)
    unknown = dist.unknown_logprob.index_fill(0, filled, -torch.inf)
    owner = torch.cat([dist.row_of_entry, filled])
    ids = torch.cat([dist.ids, target.ids[filled + 1]])
    logprobs = torch.cat([dist.logprobs, dist.logprobs.new_zeros(len(filled))])
    return make_rows(owner, ids, logprobs, dist.tail_logprob, unknown, dist.vocab_size)


def _project_as_original(dist: TokenDist, row: Int[Tensor, "target_tokens"], target: Tokens, pair: Pair) -> TokenDist:
    """The source's rows `row` as the original maps them: in order, first of equal ids, scaled up to one.

    A row of -1 has all its mass on the token just read; one without candidates is absent.
    """
    owner, source_ids, logprobs = gather_entries(dist, row)
    target_ids = pair.vocab_map.ids.to(owner.device)[source_ids]
    keep = (target_ids >= 0) & _is_first(owner * pair.target.size + target_ids, target_ids >= 0)
    owner, target_ids, logprobs = owner[keep], target_ids[keep], logprobs[keep]
    logprobs = logprobs - log_sum(owner, logprobs, len(row))[owner]
    read = (row == NO_ROW).nonzero().squeeze(1)
    owner, order = torch.cat([owner, read]).sort(stable=True)
    widths = torch.bincount(owner, minlength=len(row))
    nothing = torch.full(row.shape, -torch.inf, dtype=torch.float64, device=row.device)
    return TokenDist(
        row_offsets=torch.cat([widths.new_zeros(1), widths.cumsum(0)]),
        ids=torch.cat([target_ids, target.ids[read]])[order],
        logprobs=torch.cat([logprobs, logprobs.new_zeros(len(read))])[order],
        tail_logprob=nothing,
        unknown_logprob=nothing.masked_fill(widths == 0, 0.0),
        vocab_size=pair.target.size,
    )


def _is_first(keys: Int[Tensor, "n"], counts: Bool[Tensor, "n"]) -> Bool[Tensor, "n"]:
    """Whether no earlier key that counts is equal."""
    ordered, order = keys.masked_fill(~counts, -1).sort(stable=True)
    is_first = torch.ones_like(counts)
    is_first[order[1:][ordered.diff() == 0]] = False
    return is_first
