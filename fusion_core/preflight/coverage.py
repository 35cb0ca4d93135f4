"""What a source could give a target, told from their vocabularies and a sample of text before any model is run."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

from fusion_core.alignment import Pair, common_rows
from fusion_core.alignment.entries import NO_ROW
from fusion_core.alignment.rows import stand
from fusion_core.types import NO_BOUNDARY, Tokens
from fusion_core.vocab_mapping import Encode, decode_text
from fusion_core.vocabulary import Vocabulary


@dataclass(frozen=True)
class RowCounts:
    """Target rows by what a source has for them.

    common: the source has a row at the same byte. bridged: it is inside one of its tokens there, so that only
    `ByteBoundary.bridge` fills the row. absent: neither, or the boundary can't be proven.
    """

    common: int
    bridged: int
    absent: int

    @property
    def rows(self) -> int:
        """All of them."""
        return self.common + self.bridged + self.absent

    @property
    def common_share(self) -> float:
        """Share of rows at common boundaries; 0 of no rows."""
        return self.common / max(self.rows, 1)

    def __add__(self, other: "RowCounts") -> "RowCounts":
        return RowCounts(self.common + other.common, self.bridged + other.bridged, self.absent + other.absent)


@dataclass(frozen=True)
class VocabularyOverlap:
    """How much of a source's vocabulary the target shares, as bytes; special tokens have none and don't count.

    source_tokens, target_tokens: tokens with bytes. shared: source tokens whose bytes are a token of the target too.
    multi_piece: source tokens that the target cuts into two or more. cut_characters: source tokens that end or begin
        inside a character, so that no text is theirs alone; they count as shared or not, never as multi-piece.
    read_bytes: bytes of the sample in proven source tokens. shared_bytes, multi_piece_bytes: those of them in tokens
        that are shared, or multi-piece.
    """

    source_tokens: int
    target_tokens: int
    shared: int
    multi_piece: int
    cut_characters: int
    read_bytes: int
    shared_bytes: int
    multi_piece_bytes: int


def predicts_text(tokens: Tokens, vocabulary: Vocabulary) -> Bool[Tensor, "tokens"]:
    """Which rows have a label with bytes: the rows that a teacher is wanted for, the end of the text apart."""
    has_bytes = vocabulary.surface_lengths.to(tokens.ids.device)[tokens.ids] != 0
    predicts = has_bytes.roll(-1)
    predicts[tokens.doc_offsets[1:][tokens.doc_offsets.diff() > 0] - 1] = False
    return predicts


def groups_of_rows(
    tokens: Tokens, texts: Sequence[bytes], group_of_byte: Integer[Tensor, "bytes"]
) -> Int[Tensor, "tokens"]:
    """Int64 per row, the group of the byte where its label begins; behind a text's last byte, that byte's; -1 for none.

    A row whose boundary can't be proven takes the group of the last proven one before it in its document.

    Args:
        group_of_byte: of all bytes of the texts, one text after the other (`classify_bytes`).

    Raises:
        ValueError: the groups aren't as many as the bytes.
    """
    lengths = torch.tensor([len(text) for text in texts], dtype=torch.int64)
    if len(texts) != tokens.num_docs or len(group_of_byte) != int(lengths.sum()):
        raise ValueError(
            f"expected a text per document and a group per byte, found {len(texts)} texts for {tokens.num_docs} "
            f"documents and {len(group_of_byte)} groups for {int(lengths.sum())} bytes; classify these texts"
        )
    doc = tokens.doc_of_token
    start = (lengths.cumsum(0) - lengths)[doc]
    # boundaries are at least 0 where proven, and documents follow each other: the running maximum stays in its document
    place = torch.where(tokens.boundaries != NO_BOUNDARY, start + tokens.boundaries, start).cummax(0).values
    place = torch.minimum(place, start + lengths[doc] - 1)
    groups = torch.full_like(place, -1)
    inside = lengths[doc] > 0
    groups[inside] = group_of_byte[place[inside]].long()
    return groups


def count_rows(
    source: Tokens, target: Tokens, pair: Pair, group: Int[Tensor, "target_tokens"], num_groups: int
) -> list[RowCounts]:
    """Per group what the source has for the target's rows that predict text; rows of group -1 aren't counted.

    Both have read the same documents. Where only one of the two puts a space before a text, the first row stands at a
    common boundary and is counted as common, although `ByteBoundary` leaves it out: one row per document.
    """
    common = common_rows(source, target) != NO_ROW
    bridged = ~common & (stand(source, target, pair, common_rows(source, target), bridge=True).row != NO_ROW)
    counted = predicts_text(target, pair.target) & (group >= 0)
    state = torch.where(common, 0, torch.where(bridged, 1, 2))
    table = torch.bincount(group[counted] * 3 + state[counted], minlength=3 * num_groups).reshape(num_groups, 3)
    return [RowCounts(*row) for row in table.tolist()]


def compare_vocabularies(source: Vocabulary, target: Vocabulary, encode: Encode, sample: Tokens) -> VocabularyOverlap:
    """What the two vocabularies share, by tokens and by the bytes of a sample as the source has cut it.

    Args:
        encode: the target's tokenization in the middle of a text.
        sample: tokens of the source.
    """
    is_shared, is_multi_piece, is_cut = _compare_surfaces(source, target, encode)
    proven = (sample.boundaries != NO_BOUNDARY) & (source.surface_lengths[sample.ids] > 0)
    ids = sample.ids[proven]
    lengths = source.surface_lengths[ids]
    with_bytes = source.surface_lengths > 0
    return VocabularyOverlap(
        source_tokens=int(with_bytes.sum()),
        target_tokens=int((target.surface_lengths > 0).sum()),
        shared=int(is_shared.sum()),
        multi_piece=int(is_multi_piece.sum()),
        cut_characters=int(is_cut.sum()),
        read_bytes=int(lengths.sum()),
        shared_bytes=int(lengths[is_shared[ids]].sum()),
        multi_piece_bytes=int(lengths[is_multi_piece[ids]].sum()),
    )


def _compare_surfaces(source: Vocabulary, target: Vocabulary, encode: Encode) -> tuple[Tensor, Tensor, Tensor]:
    """Bool per source id: is a target token, is several, is no whole text."""
    texts = {i: decode_text(surface) for i, surface in enumerate(source.surfaces) if surface}
    shared = [bool(surface) and surface in target.id_of_surface for surface in source.surfaces]
    whole = {i: text for i, text in texts.items() if text is not None}
    pieces = encode(list(whole.values())) if whole else []
    multi_piece = torch.zeros(source.size, dtype=torch.bool)
    for token, ids in zip(whole, pieces, strict=True):
        multi_piece[token] = sum(target.surfaces[i] != b"" for i in ids) > 1
    cut = torch.zeros(source.size, dtype=torch.bool)
    cut[[i for i, text in texts.items() if text is None]] = True
    return torch.tensor(shared, dtype=torch.bool), multi_piece, cut
