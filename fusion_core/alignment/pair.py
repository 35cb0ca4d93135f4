"""All that is fixed about a source and a target, with the tables that aligning them looks things up in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fusion_core.alignment.surface_bytes import PrefixTree, SurfaceBytes
from fusion_core.types import Scored, Tokens, VocabMap
from fusion_core.vocabulary import Vocabulary


@dataclass(frozen=True)
class Pair:
    """All that is fixed about a source and a target.

    vocab_map: from the source's ids to the target's.
    encode: token ids of texts as the target cuts them in the middle of a document; only strategies and mappings that
        look at the context need it.
    """

    source: Vocabulary
    target: Vocabulary
    vocab_map: VocabMap
    encode: Callable[[Sequence[str]], list[list[int]]] | None = None

    def __post_init__(self) -> None:
        found = (self.vocab_map.ids.shape[0], self.vocab_map.target_size)
        if found != (self.source.size, self.target.size):
            raise ValueError(
                f"the vocabulary map must lead from {self.source.size} to {self.target.size} ids, but found {found[0]} "
                f"to {found[1]}; map these two vocabularies again"
            )

    def check(self, source: Scored, target: Tokens) -> None:
        """Raises ValueError unless the shards are of these two vocabularies, and the source's rows are sound."""
        if source.dist.vocab_size != self.source.size:
            raise ValueError(
                f"the source's rows must be over its vocabulary of {self.source.size} ids, but found "
                f"{source.dist.vocab_size}; extract with this tokenizer"
            )
        source.dist.check()
        for name, tokens, size in (("source", source.tokens, self.source.size), ("target", target, self.target.size)):
            if len(tokens.ids) and not 0 <= int(tokens.ids.min()) <= int(tokens.ids.max()) < size:
                raise ValueError(
                    f"the {name}'s token ids must lie in 0..{size - 1}, but found {int(tokens.ids.min())}.."
                    f"{int(tokens.ids.max())}; make the pair with the vocabulary of the tokenizer that made them"
                )

    @cached_property
    def preimages(self) -> Int[Tensor, "target_vocab"]:
        """Number of source ids that go to each target id."""
        mapped = self.vocab_map.ids[self.vocab_map.ids >= 0]
        return torch.bincount(mapped, minlength=self.vocab_map.target_size)

    @cached_property
    def homeless(self) -> Bool[Tensor, "source_vocab"]:
        """Source ids that have bytes but no place in the target: the target spells them somehow, nobody knows how."""
        ids = self.vocab_map.ids
        return (ids < 0) & (self.source.surface_lengths.to(ids.device) > 0)

    @cached_property
    def source_bytes(self) -> SurfaceBytes:
        """The source's surfaces as bytes."""
        return SurfaceBytes.of(self.source)

    @cached_property
    def target_bytes(self) -> SurfaceBytes:
        """The target's surfaces as bytes."""
        return SurfaceBytes.of(self.target)

    @cached_property
    def source_tree(self) -> PrefixTree:
        """The source's surfaces as a tree."""
        return PrefixTree.of(self.source_bytes)

    @cached_property
    def target_joints(self) -> Bool[Tensor, "pairs"]:
        """Which pairs of bytes (first * 256 + second) some token of the target holds next to each other."""
        return self.target_bytes.joints()
