"""Where the tokens of a source go in the target's vocabulary.

A mapping is chosen by its `kind` and called once per (source, target); one that `needs_counts` is given what a corpus
shows of the two vocabularies (`tally_pairs`), which has to be counted first. Byte surfaces are compared, never strings;
special tokens go by their role: the end token to the end token, everything else that has no bytes nowhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from fusion_core.min_edit import CoOccurrence, MinEdit
from fusion_core.pair_counts import PairCounts
from fusion_core.spec import Spec
from fusion_core.types import VocabMap
from fusion_core.vocabulary import NOWHERE, Vocabulary, map_roles

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Token ids of texts as the target cuts them in the middle of a document: no prefix space, no special tokens."""


class BytePiece(Spec):
    """Each source token goes to the first token that the target makes of its bytes."""

    needs_counts: ClassVar[bool] = False

    kind: Literal["byte_piece"] = Field(default="byte_piece", title="First piece of the target's own tokenization")

    def __call__(self, source: Vocabulary, target: Vocabulary, encode: Encode, counts: object = None) -> VocabMap:
        """The map of every source id.

        The target's own tokenization counts, not a byte-equal token that it would never produce. Where that first token
        doesn't begin the source's bytes (part of a character, text that the target normalises or doesn't know), the
        longest target token that does is taken instead; if there is none either, the target's first token if it has
        bytes at all, else nowhere (-1). `counts` are not used.
        """
        with_bytes = [token for token, surface in enumerate(source.surfaces) if surface]
        ids = map_roles(source, target)
        pieces = first_pieces([source.surfaces[token] or b"" for token in with_bytes], target, encode)
        for token, piece in zip(with_bytes, pieces, strict=True):
            ids[token] = piece
        return VocabMap(torch.tensor(ids, dtype=torch.int64), target.size)


class Canonical(Spec):
    """Each candidate counts for the token that the target would put in its place, in the text before it."""

    needs_counts: ClassVar[bool] = False

    kind: Literal["canonical"] = Field(default="canonical", title="The target's own tokenization, in context")

    def __call__(self, source: Vocabulary, target: Vocabulary, encode: Encode, counts: object = None) -> VocabMap:
        """`BytePiece`'s map, marked `in_context`: aligning looks at each row's text and takes it as a last resort."""
        return replace(BytePiece()(source, target, encode), in_context=True)


class ExactMatch(Spec):
    """Each source token goes to the target token of the same bytes; the others go nowhere."""

    needs_counts: ClassVar[bool] = False

    kind: Literal["exact"] = Field(default="exact", title="Tokens of equal bytes only")

    def __call__(
        self, source: Vocabulary, target: Vocabulary, encode: object = None, counts: object = None
    ) -> VocabMap:
        """The map of every source id, -1 where no target token has its bytes; of equal ones see `id_of_surface`.

        `encode` and `counts` are accepted for the sake of other mappings and not used.
        """
        ids = map_roles(source, target)
        for token, surface in enumerate(source.surfaces):
            if surface:
                ids[token] = target.id_of_surface.get(surface, NOWHERE)
        return VocabMap(torch.tensor(ids, dtype=torch.int64), target.size)


class Statistics(Spec):
    """Each source token goes to the target token that was seen most often in its place.

    The idea is FuseChat's (Wan et al. 2024, arXiv 2402.16107): a corpus that both have read tells what the target makes
    of a token. There tokens are matched by time warping, and of those matched with a token its code takes the one of
    least edit distance, scaled by the count; here a place is a common byte boundary (`tally_pairs`) and only frequency
    counts. Where `BytePiece` cuts a token's bytes by themselves, this sees them in text, so a token that mostly goes on
    ("th" before "e") goes to what the target makes of the whole.
    """

    needs_counts: ClassVar[bool] = True

    kind: Literal["statistics"] = Field(default="statistics", title="Most often seen in its place")
    min_count: int = Field(
        default=1,
        ge=1,
        title="Seen at least",
        description="A token seen less often in the corpus goes to the first piece of the target's own tokenization.",
    )

    def __call__(self, source: Vocabulary, target: Vocabulary, encode: Encode, counts: PairCounts) -> VocabMap:
        """The map of every source id; of target tokens seen equally often the lowest id, unseen ones as `BytePiece`.

        Raises:
            ValueError: a counted id is none of its vocabulary's.
        """
        seen = counts.with_bytes(source, target)
        best = seen.select(seen.source_totals() >= self.min_count).most_frequent()
        ids = BytePiece()(source, target, encode).ids
        return VocabMap(ids.index_copy(0, best.source_ids, best.target_ids), target.size)


VocabMapping = Annotated[
    BytePiece | Canonical | CoOccurrence | ExactMatch | MinEdit | Statistics, Field(discriminator="kind")
]


def first_pieces(surfaces: Sequence[bytes], target: Vocabulary, encode: Encode) -> list[int]:
    """The target id that each text (not empty) begins with in the target's own tokenization, by `BytePiece`'s rules.

    Raises ValueError for an `encode` that doesn't answer every text, or with ids outside the target's vocabulary.
    """
    whole = {surface: text for surface in surfaces if (text := decode_text(surface)) is not None}
    answers = encode(list(whole.values())) if whole else []
    if len(answers) != len(whole):
        raise ValueError(
            f"the target's encode must answer each of {len(whole)} texts, but found {len(answers)} answers; return an "
            "empty list for a text without tokens"
        )
    encoded = dict(zip(whole, answers, strict=True))
    highest = max((token for ids in encoded.values() for token in ids), default=NOWHERE)
    if highest >= target.size:
        raise ValueError(
            f"the target's encode must give ids in 0..{target.size - 1}, but found {highest}; pass the "
            "vocabulary of the same tokenizer"
        )
    find_prefix = _PrefixFinder(target.id_of_surface)
    return [_first_piece(surface, encoded.get(surface, []), target, find_prefix) for surface in surfaces]


class _PrefixFinder:
    """Finds the longest of some surfaces that given bytes begin with."""

    def __init__(self, id_of_surface: Mapping[bytes, int]) -> None:
        self._id_of_surface = id_of_surface
        self._longest = max(map(len, id_of_surface), default=0)

    def __call__(self, content: bytes) -> int:
        for length in range(min(len(content), self._longest), 0, -1):
            if (token := self._id_of_surface.get(content[:length])) is not None:
                return token
        return NOWHERE


def _first_piece(surface: bytes, encoded: Sequence[int], target: Vocabulary, find_prefix: _PrefixFinder) -> int:
    first = next((token for token in encoded if target.surfaces[token]), NOWHERE)
    if first != NOWHERE and surface.startswith(target.surfaces[first] or b""):
        return first
    prefix = find_prefix(surface)
    return prefix if prefix != NOWHERE else first


def decode_text(content: bytes) -> str | None:
    """The text, or None where the bytes are no whole characters."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None
