"""The paper's vocabulary mapping, each source token to the target token that is spelled most like it, and a refinement.

`MinEdit` takes the first of several equally similar tokens; `CoOccurrence` the one that a corpus shows in its place.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from fusion_core.edit_distance import paired_distances
from fusion_core.nearest_string import find_nearest
from fusion_core.pair_counts import PairCounts
from fusion_core.spec import Spec
from fusion_core.types import VocabMap
from fusion_core.vocabulary import NOWHERE, Vocabulary, map_roles


class MinEdit(Spec):
    """Each source token goes to the target token of least edit distance (Wan et al. 2024, FuseLLM).

    Pieces are compared as strings, after the source's word-start marker is replaced by the target's; of equally near
    ones the lowest id is taken. Strings aren't bytes: where only one side is byte-level, "é" is spelled "Ã©" there, so
    a token of equal bytes may be missed. `BytePiece` and `Canonical` see the bytes; this mapping is the baseline.
    """

    needs_counts: ClassVar[bool] = False

    kind: Literal["min_edit"] = Field(default="min_edit", title="Most similar spelling")
    max_distance: int | None = Field(
        default=None,
        ge=0,
        title="Largest distance",
        description="In edits; a token farther from every target goes nowhere.",
    )
    reference: bool = Field(
        default=False,
        title="As in the original",
        description="Compare special tokens by their spelling too; otherwise they go by role (end token to end token).",
    )

    def __call__(
        self, source: Vocabulary, target: Vocabulary, encode: object = None, counts: object = None
    ) -> VocabMap:
        """The map of every source id, -1 for nowhere.

        `encode` and `counts` are accepted for the sake of other mappings and not used. With `max_distance` 0 only equal
        strings map.

        Raises:
            ValueError: a vocabulary was built without pieces.
        """
        asked = self._spelled(source, target.word_marker)
        given = self._spelled(target, target.word_marker)
        found = find_nearest(list(asked.values()), list(given.values()))
        near = torch.from_numpy(found.index >= 0)
        if self.max_distance is not None:
            near &= torch.from_numpy(found.distance <= self.max_distance)
        roles = [NOWHERE] * source.size if self.reference else map_roles(source, target)
        ids = torch.tensor(roles, dtype=torch.int64)
        given_ids = torch.tensor([*given, NOWHERE], dtype=torch.int64)
        places = torch.tensor(list(asked), dtype=torch.int64)
        ids[places[near]] = given_ids[torch.from_numpy(found.index)][near]
        return VocabMap(ids, target.size)

    def _spelled(self, vocabulary: Vocabulary, marker: str) -> dict[int, str]:
        """The pieces that are compared, in order of their ids: those with bytes, or in the original all."""
        return {
            token: piece
            for token, piece in enumerate(vocabulary.pieces_marked(marker))
            if piece is not None and (self.reference or vocabulary.surfaces[token])
        }


class CoOccurrence(Spec):
    """Each source token goes to the most similarly spelled target token, of equally similar ones to the most seen.

    `MinEdit` refined by a corpus, as the code of Wan et al. 2024 (FuseLLM) does in its mapping of this name: where
    several target tokens have the least edit distance, their use decides. There it is the likeness of their contexts:
    each vocabulary counts which tokens stand within five of each other, and cosines of these counts are compared. Here
    it is how often the target began the token where the source began its own (`tally_pairs`), which asks the question
    itself and needs no counts of each vocabulary with itself. Tokens that were never seen there stay with `MinEdit`.
    """

    needs_counts: ClassVar[bool] = True

    kind: Literal["co_occurrence"] = Field(default="co_occurrence", title="Most similar spelling, seen in its place")
    max_distance: int | None = Field(
        default=None,
        ge=0,
        title="Largest distance",
        description="In edits; a token farther from every target goes nowhere.",
    )

    def __call__(self, source: Vocabulary, target: Vocabulary, encode: object, counts: PairCounts) -> VocabMap:
        """The map of every source id, -1 for nowhere; of target tokens seen equally often the lowest id.

        `encode` is accepted for the sake of other mappings and not used.

        Raises:
            ValueError: a vocabulary was built without pieces, or a counted id is none of its vocabulary's.
        """
        first = MinEdit(max_distance=self.max_distance)(source, target)
        ours, theirs = source.pieces_marked(target.word_marker), target.pieces_marked(target.word_marker)
        seen = counts.with_bytes(source, target)
        seen = seen.select(first.ids[seen.source_ids] >= 0)
        asked = [ours[token] or "" for token in seen.source_ids.tolist()]
        least = paired_distances(asked, [theirs[token] or "" for token in first.ids[seen.source_ids].tolist()])
        found = paired_distances(asked, [theirs[token] or "" for token in seen.target_ids.tolist()])
        best = seen.select(torch.from_numpy(found == least)).most_frequent()
        return VocabMap(first.ids.index_copy(0, best.source_ids, best.target_ids), target.size)
