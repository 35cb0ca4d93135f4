"""What a check of one golden file comes to, and how its numbers are compared."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Outcome:
    """cases: what was recomputed; mismatches: cases that differ; largest: the largest difference of a number."""

    cases: int
    mismatches: int
    largest: float = 0.0


class Tally:
    """Collects cases; a case differs if anything in it does, and is counted once."""

    def __init__(self) -> None:
        self._cases = self._mismatches = 0
        self._largest = 0.0

    def add(self, same: bool, differences: Iterable[tuple[float, float]] = ()) -> None:
        """One case: whether all that must be equal is, and (difference, largest allowed) of its numbers."""
        pairs = list(differences)
        self._cases += 1
        self._mismatches += not (same and all(difference <= allowed for difference, allowed in pairs))
        self._largest = max([self._largest, *(math.inf if math.isnan(d) else d for d, _ in pairs)])

    def outcome(self) -> Outcome:
        return Outcome(self._cases, self._mismatches, self._largest)


def distance(found: Any, expected: Any) -> float:
    """The largest absolute difference of two arrays; NaN equals NaN; infinite for other shapes."""
    a, b = (torch.as_tensor(values, dtype=torch.float64) for values in (found, expected))
    if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return math.inf
    same = (a == b) | a.isnan()
    return float((a - b).abs()[~same].max()) if bool((~same).any()) else 0.0
