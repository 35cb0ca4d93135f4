"""How much an alignment gave."""

from dataclasses import dataclass

from torch import Tensor

from fusion_core.types import Aligned


@dataclass(frozen=True)
class AlignmentFacts:
    """How much an alignment gave: counts of rows, and mean mass over the rows that are present (0 if none is)."""

    rows: int
    present: int
    kept: float
    tail: float
    unknown: float


def summarize(aligned: Aligned) -> AlignmentFacts:
    """What the report says of an alignment."""
    dist, present = aligned.dist, aligned.dist.present
    count = int(present.sum())

    def mean(mass: Tensor) -> float:
        return float(mass.double().sum()) / max(count, 1)

    return AlignmentFacts(
        rows=dist.num_rows,
        present=count,
        kept=mean(dist.logprobs.exp()),
        tail=mean(dist.tail_logprob[present].exp()),
        unknown=mean(dist.unknown_logprob[present].exp()),
    )
