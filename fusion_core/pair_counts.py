"""How often the tokens of a target stood in the place of a source's tokens: sparse counts that add up over shards."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fusion_core.vocabulary import Vocabulary


@dataclass(frozen=True)
class PairCounts:
    """How often each pair of a source's and a target's token was seen; every pair once, by source id, then target id.

    A table of both vocabularies would have 10^10 cells; the pairs that occur in a text are never more than its tokens.

    source_ids, target_ids: int64. counts: int64, at least 1.
    """

    source_ids: Int[Tensor, "pairs"]
    target_ids: Int[Tensor, "pairs"]
    counts: Int[Tensor, "pairs"]

    @classmethod
    def of(
        cls, source_ids: Int[Tensor, "seen"], target_ids: Int[Tensor, "seen"], counts: Int[Tensor, "seen"]
    ) -> "PairCounts":
        """The pairs in order, the counts of equal ones summed. Raises ValueError unless there are as many of each."""
        if not len(source_ids) == len(target_ids) == len(counts):
            raise ValueError(
                f"expected as many target ids and counts as source ids, {len(source_ids)}, found {len(target_ids)} and "
                f"{len(counts)}; pass one of each per pair"
            )
        stride = 1 + (target_ids.max() if len(target_ids) else 0)
        keys, place = torch.unique(source_ids * stride + target_ids, return_inverse=True)
        return cls(keys // stride, keys % stride, torch.zeros_like(keys).index_add(0, place, counts))

    def select(self, keep: Bool[Tensor, "pairs"]) -> "PairCounts":
        """Some of the pairs."""
        return PairCounts(self.source_ids[keep], self.target_ids[keep], self.counts[keep])

    def with_bytes(self, source: Vocabulary, target: Vocabulary) -> "PairCounts":
        """The pairs whose two tokens have bytes, on the CPU, where vocabularies are; others stand for no text.

        Raises:
            ValueError: an id is none of its vocabulary's.
        """
        _check_range(self.source_ids, source, "source")
        _check_range(self.target_ids, target, "target")
        here = PairCounts(self.source_ids.cpu(), self.target_ids.cpu(), self.counts.cpu())
        source_has = source.surface_lengths[here.source_ids] > 0
        return here.select(source_has & (target.surface_lengths[here.target_ids] > 0))

    def source_totals(self) -> Int[Tensor, "pairs"]:
        """For each pair, how often its source token was seen in any."""
        place = (self.source_ids.diff(prepend=self.source_ids[:1]) != 0).cumsum(0)
        return torch.zeros_like(self.counts).index_add(0, place, self.counts)[place]

    def most_frequent(self) -> "PairCounts":
        """Of each source token the pair seen most often; of equally frequent ones that of the lowest target id."""
        order = self.counts.argsort(descending=True, stable=True)
        order = order[self.source_ids[order].argsort(stable=True)]
        is_first = self.source_ids[order].diff(prepend=self.source_ids.new_full((1,), -1)) != 0
        chosen = order[is_first]
        return PairCounts(self.source_ids[chosen], self.target_ids[chosen], self.counts[chosen])


def sum_counts(parts: Sequence[PairCounts]) -> PairCounts:
    """The counts of all parts together, as if one had counted their texts at once; no pairs for no parts."""
    if not parts:
        nothing = torch.zeros(0, dtype=torch.int64)
        return PairCounts(nothing, nothing, nothing)
    columns = [torch.cat([getattr(part, name) for part in parts]) for name in ("source_ids", "target_ids", "counts")]
    return PairCounts.of(*columns)


def _check_range(ids: Int[Tensor, "pairs"], vocabulary: Vocabulary, side: str) -> None:
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary.size:
        raise ValueError(
            f"counted ids of the {side} must be in 0..{vocabulary.size - 1}, its vocabulary's, but found "
            f"{int(ids.min())} to {int(ids.max())}; count the pairs of these two models"
        )
