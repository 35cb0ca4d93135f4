"""The paper's vocabulary mapping: each source token goes to the target token that is spelled most like it."""

from typing import Literal

import torch
from pydantic import Field

from fusion_core.nearest_string import find_nearest
from fusion_core.spec import Spec
from fusion_core.types import VocabMap
from fusion_core.vocabulary import NOWHERE, Vocabulary, map_roles


class MinEdit(Spec):
    """Each source token goes to the target token of least edit distance (Wan et al. 2024, FuseLLM).

    Pieces are compared as strings, after the source's word-start marker is replaced by the target's; of equally near
    ones the lowest id is taken. Strings aren't bytes: where only one side is byte-level, "é" is spelled "Ã©" there, so
    a token of equal bytes may be missed. `BytePiece` and `Canonical` see the bytes; this mapping is the baseline.
    """

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

    def __call__(self, source: Vocabulary, target: Vocabulary, encode: object = None) -> VocabMap:
        """The map of every source id, -1 for nowhere.

        `encode` is accepted for the sake of other mappings and not used. With `max_distance` 0 only equal strings map.

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
