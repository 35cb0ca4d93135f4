"""Long tensors read a stretch at a time: exact order statistics and sums, in memory that doesn't grow with them.

The embedding of a 7B model has 600 million elements. What a method must know of the whole tensor before it can treat
one element (a norm, the k-th largest value) is found here by reading it several times.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

STRETCH = 1 << 18
"""Elements of a stretch: 1 MiB in float32, so that the work stays in the processor's cache."""
_SUMMED_AT_ONCE = 4096
_BUCKETS = 1 << 16


@runtime_checkable
class Elements(Protocol):
    """A tensor's elements in row-major order: a flat `Tensor`, or anything that reads a stretch when it is asked."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the stretches."""

    def __len__(self) -> int:
        """How many elements there are."""

    def __getitem__(self, stretch: slice, /) -> Tensor:
        """The elements `stretch.start..stretch.stop-1`, flat."""


Rows = Callable[[], Iterable[Float[Tensor, "rows _"]]]
"""Each call reads the same rows from their start, a stretch at a time."""


def spans(length: int) -> Iterator[slice]:
    """The stretches of so many elements, in order; none for 0."""
    return (slice(start, min(start + STRETCH, length)) for start in range(0, length, STRETCH))


def find_kth_largest(rows: Rows, k: int) -> Float[Tensor, "rows 1"]:
    """The k-th largest value of each row, exactly; `rows` is read twice.

    Bits of non-negative floats are ordered like their values: one count of their upper halves finds the bucket that
    holds the k-th, one of the lower halves within it the value.

    Args:
        rows: non-negative float32 values, at least one stretch.
        k: from 1 to the number of elements of a row.
    """
    upper, rank = _find_bucket(_add_up(_count(_bits(part) >> 16) for part in rows()), k)
    counts = (
        torch.stack([_count_one(row[row >> 16 == bucket] & 0xFFFF) for row, bucket in zip(bits, upper, strict=True)])
        for bits in map(_bits, rows())
    )
    lower, _ = _find_bucket(_add_up(counts), rank)
    return (upper << 16 | lower).int().view(torch.float32).unsqueeze(1)


def sum_exactly(rows: Iterable[Float[Tensor, "rows _"]]) -> list[float]:
    """The sum of each row in float64, the same whatever the number of threads."""
    totals: list[list[float]] = []
    for part in rows:
        padded = functional.pad(part.double(), (0, -part.shape[1] % _SUMMED_AT_ONCE))
        # One long sum is cut among threads, so its last bits would depend on how many there are; short ones aren't.
        totals.append(padded.view(len(part), -1, _SUMMED_AT_ONCE).sum(2).tolist())
    return [math.fsum(value for part in row for value in part) for row in zip(*totals, strict=True)]


def _bits(values: Float[Tensor, "rows elements"]) -> Int[Tensor, "rows elements"]:
    return values.contiguous().view(torch.int32)


def _count(buckets: Int[Tensor, "rows elements"]) -> Int[Tensor, "rows buckets"]:
    return torch.stack([_count_one(row) for row in buckets])


def _count_one(buckets: Int[Tensor, "elements"]) -> Int[Tensor, "buckets"]:
    return torch.bincount(buckets, minlength=_BUCKETS)


def _add_up(counts: Iterable[Int[Tensor, "rows buckets"]]) -> Int[Tensor, "rows buckets"]:
    parts = iter(counts)
    total = next(parts)
    for part in parts:
        total += part
    return total


def _find_bucket(
    counts: Int[Tensor, "rows buckets"], k: "int | Int[Tensor, 'rows']"
) -> tuple[Int[Tensor, "rows"], Int[Tensor, "rows"]]:
    """Per row, the bucket that holds its k-th largest element, and which one it is of those in there."""
    wanted = torch.as_tensor(k, device=counts.device).expand(counts.shape[0]).unsqueeze(1)
    above = counts.flip(1).cumsum(1).flip(1) - counts  # how many lie in higher buckets; falls from left to right
    bucket = (above >= wanted).sum(1)
    return bucket, wanted.squeeze(1) - above.gather(1, bucket.unsqueeze(1)).squeeze(1)
