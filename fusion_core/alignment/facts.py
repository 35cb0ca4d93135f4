"""How much an alignment gave."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from fusion_core.types import Aligned


@dataclass(frozen=True)
class AlignmentFacts:
    """How much an alignment gave: wanted and present rows, and mean mass over those that are present (0 if none is)."""

    rows: int
    present: int
    kept: float
    tail: float
    unknown: float


def summarize(aligned: Aligned, wanted: Bool[Tensor, "rows"] | None = None) -> AlignmentFacts:
    """What the report says of an alignment. wanted: the rows to count, `Scored.wanted` of the target; by default all.

    Raises ValueError for other than one mark per row.
    """
    wanted = torch.ones_like(aligned.dist.present) if wanted is None else wanted
    if len(wanted) != aligned.dist.num_rows:
        raise ValueError(f"expected {aligned.dist.num_rows} marks, one per row, found {len(wanted)}; or pass none")
    dist, present = aligned.dist, aligned.dist.present
    count = int(present.sum())

    def mean(mass: Tensor) -> float:
        return float(mass.double().sum()) / max(count, 1)

    return AlignmentFacts(
        rows=int(wanted.sum()),
        present=count,
        kept=mean(dist.logprobs.exp()),
        tail=mean(dist.tail_logprob[present].exp()),
        unknown=mean(dist.unknown_logprob[present].exp()),
    )
