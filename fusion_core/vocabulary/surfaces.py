"""The bytes that every id of a tokenizer stands for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """The byte surface of every id, and what the tokenizer does to a text besides cutting it.

    surfaces: index = id. The bytes that the token contributes to a text; `b""` for special tokens; `None` for ids
        that have no bytes of their own: unused ids, and the unknown token, which hides the bytes it stands for.
        Surfaces of a document's tokens, joined, are the document (see `token_boundaries` for the exceptions).
    roles: ids of the special tokens that have a meaning in every tokenizer: any of "bos", "eos", "pad", "unk".
        Several roles may share an id.
    adds_prefix_space: the tokenizer may put a space before a text; the first token's surface then begins with a space
        that is no byte of the text.
    normalizes: the tokenizer may change the text before cutting it (lower-casing, NFC, dropped spaces ...), so joined
        surfaces may differ from the document.
    pieces: index = id. The strings by which the tokenizer names its tokens, markers and all; `None` for unused ids.
        Empty for a vocabulary that was built without them: only what compares strings needs them.
    word_marker: what stands for a space in the pieces ("Ġ", "▁"); "" if nothing does.
    """

    surfaces: tuple[bytes | None, ...]
    roles: Mapping[str, int]
    adds_prefix_space: bool
    normalizes: bool
    pieces: tuple[str | None, ...] = ()
    word_marker: str = ""

    def __post_init__(self) -> None:
        outside = {role: token for role, token in self.roles.items() if not 0 <= token < self.size}
        if outside:
            raise ValueError(
                f"roles must name ids in 0..{self.size - 1}, the ids of this tokenizer, but found {outside}; "
                "leave out the roles that the tokenizer doesn't have"
            )
        if self.pieces and len(self.pieces) != self.size:
            raise ValueError(
                f"expected one piece per surface, found {len(self.pieces)} pieces for {self.size} surfaces; "
                "pass both for every id, or no pieces at all"
            )

    @property
    def size(self) -> int:
        """Number of ids, unused ones included."""
        return len(self.surfaces)

    @cached_property
    def surface_lengths(self) -> Int[Tensor, "vocab"]:
        """Bytes of each id's surface, int64 on the CPU; -1 where the id has no bytes of its own (`None`)."""
        return torch.tensor([-1 if s is None else len(s) for s in self.surfaces], dtype=torch.int64)

    @cached_property
    def id_of_surface(self) -> dict[bytes, int]:
        """The id of each non-empty surface.

        Of ids with equal bytes the highest is named: the two kinds of duplicates are byte-fallback pieces, which come
        first (`<0x41>` before `A`), and pieces shadowed by an added token, which comes last (a run of spaces); in both
        the tokenizer produces the higher one.
        """
        return {surface: token for token, surface in enumerate(self.surfaces) if surface}

    def join_surfaces(self, ids: Int[Tensor, "tokens"]) -> NDArray[np.uint8]:
        """The surfaces of `ids` one after the other, as one array of bytes; ids without bytes contribute none.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        buffer, starts, lengths = self._table
        index = ids.cpu().numpy()
        if len(index) and not 0 <= index.min() <= index.max() < self.size:
            raise ValueError(
                f"ids must lie in 0..{self.size - 1}, but found {index.min()}..{index.max()}; read the vocabulary of "
                "the tokenizer that made them"
            )
        widths = lengths[index]
        first_in_output = np.cumsum(widths) - widths
        place = np.arange(widths.sum()) + np.repeat(starts[index] - first_in_output, widths)
        joined: NDArray[np.uint8] = buffer[place]
        return joined

    @cached_property
    def _table(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """All surfaces in one buffer, the place where each starts, and its length."""
        lengths = self.surface_lengths.clamp(min=0).numpy()
        buffer = np.frombuffer(b"".join(s for s in self.surfaces if s), dtype=np.uint8)
        return buffer, np.cumsum(lengths) - lengths, lengths

    def pieces_marked(self, marker: str) -> list[str | None]:
        """The pieces of all ids with `marker` in place of this vocabulary's own word marker.

        Raises:
            ValueError: the vocabulary was built without pieces.
        """
        if len(self.pieces) != self.size:
            raise ValueError(
                f"comparing tokens as strings needs a piece per id, but found {len(self.pieces)} pieces for "
                f"{self.size} ids; read the vocabulary with read_vocabulary"
            )
        if not self.word_marker:
            return list(self.pieces)
        return [None if piece is None else piece.replace(self.word_marker, marker) for piece in self.pieces]

    def to_json(self) -> str:
        """The vocabulary as JSON text, equal for equal vocabularies; each byte of a surface is one character."""
        content = {
            "surfaces": [None if s is None else s.decode("latin-1") for s in self.surfaces],
            "roles": dict(self.roles),
            "adds_prefix_space": self.adds_prefix_space,
            "normalizes": self.normalizes,
            "pieces": self.pieces,
            "word_marker": self.word_marker,
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """The vocabulary that `to_json` wrote."""
        content = json.loads(text)
        surfaces = tuple(None if s is None else s.encode("latin-1") for s in content.pop("surfaces"))
        return cls(surfaces=surfaces, pieces=tuple(content.pop("pieces", ())), **content)
