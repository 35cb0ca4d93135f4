"""What every fusion strategy is: called with candidates and the target's tokens, it returns one teacher."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from fusion_core.spec import Spec
from fusion_core.types import Aligned, Fused, Tokens


class Strategy(Spec, ABC):
    """A fusion strategy; see `fusion_core.fusion`."""

    def __call__(self, candidates: Sequence[Aligned], target: Tokens) -> Fused:
        """One distribution per target row, and who gave it; absent rows of a winner stay absent.

        Raises ValueError without candidates, or if their rows aren't the target's.
        """
        check_candidates(candidates, target)
        return self.fuse(candidates, target)

    @abstractmethod
    def fuse(self, candidates: Sequence[Aligned], target: Tokens) -> Fused:
        """The same for candidates that are known to fit."""


def check_candidates(candidates: Sequence[Aligned], target: Tokens) -> None:
    """Raises ValueError without candidates, or if their rows aren't the target's."""
    if not candidates:
        raise ValueError("expected at least 1 candidate to fuse, found 0; pass a source or the target's own rows")
    rows = [candidate.dist.num_rows for candidate in candidates]
    if set(rows) != {len(target.ids)}:
        raise ValueError(
            f"expected {len(target.ids)} rows, one per target token, found {rows}; align the sources first"
        )
