"""What kernels that go through rows share: ragged rows as arrays, rows made block by block, equal ids summed.

Rows are short, so an entry is compared with the others of its row alone: no list of all entries is sorted. Kernels run
on the CPU; every function that has one says what it does on other devices.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fusion_core.compilation import compiled
from fusion_core.distributions.rows import concatenate
from fusion_core.types import TokenDist

Floats = NDArray[np.float32] | NDArray[np.float64]
Doubles = NDArray[np.float64]
Places = NDArray[np.int64]
Flags = NDArray[np.bool_]

SHORT = 32
"""Rows of up to so many candidates are sorted by insertion."""


class RaggedRows(NamedTuple):
    """A `TokenDist` as arrays (a named tuple, which kernels can take)."""

    offsets: Places
    ids: Places
    logprobs: Floats
    tail: Floats
    unknown: Floats


def as_arrays(dist: TokenDist, dtype: torch.dtype) -> RaggedRows:
    """The rows of a distribution on the CPU, log-probabilities as `dtype`; copied only where a type changes."""
    floats = (values.to(dtype).numpy() for values in (dist.logprobs, dist.tail_logprob, dist.unknown_logprob))
    return RaggedRows(dist.row_offsets.numpy(), dist.ids.long().numpy(), *floats)


def make_in_blocks(make: Callable[[int, int], RaggedRows], num_rows: int, vocab_size: int) -> TokenDist:
    """The rows that `make(start, stop)` gives, in order, made by as many threads as torch uses."""
    threads = torch.get_num_threads()
    cuts = [num_rows * block // threads for block in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        blocks = list(pool.map(make, cuts[:-1], cuts[1:]))
    dists = []
    for block in blocks:
        offsets, ids, logprobs, tail, unknown = map(torch.from_numpy, block)
        dists.append(TokenDist(offsets, ids, logprobs, tail, unknown, vocab_size))
    return concatenate(dists)


@compiled
def new_rows(num_rows: int, capacity: int, like: Floats) -> RaggedRows:
    """Room for so many rows with so many entries in all; nothing in it counts before it is written."""
    return RaggedRows(
        np.zeros(num_rows + 1, np.int64),
        np.empty(capacity, np.int64),
        np.empty(capacity, like.dtype),
        np.empty(num_rows, like.dtype),
        np.empty(num_rows, like.dtype),
    )


@compiled
def write_row(rows: RaggedRows, place: int, ids: Places, logprobs: Doubles, width: int) -> None:
    """Adds the entries of the row `place`: `width` of those given, sorted by id, equal ids summed."""
    _sort_row(ids, logprobs, width)
    start = end = rows.offsets[place]
    for i in range(width):
        if end > start and rows.ids[end - 1] == ids[i]:
            logprobs[end - start - 1] = log_add(logprobs[end - start - 1], logprobs[i])
        else:
            rows.ids[end], logprobs[end - start] = ids[i], logprobs[i]
            end += 1
    for i in range(end - start):
        rows.logprobs[start + i] = logprobs[i]
    rows.offsets[place + 1] = end


@compiled
def _sort_row(ids: Places, logprobs: Doubles, width: int) -> None:
    """Sorts the first `width` entries by id; equal ids keep their order."""
    if width > SHORT:
        order = np.argsort(ids[:width], kind="mergesort")
        ids[:width], logprobs[:width] = ids[:width][order], logprobs[:width][order]
        return
    for i in range(1, width):
        token, logprob, place = ids[i], logprobs[i], i
        while place > 0 and ids[place - 1] > token:
            ids[place], logprobs[place] = ids[place - 1], logprobs[place - 1]
            place -= 1
        ids[place], logprobs[place] = token, logprob


@compiled
def log_add(a: float, b: float) -> float:
    """Log of the sum of two probabilities."""
    less, more = min(a, b), max(a, b)
    return more if less == -np.inf else more + np.log1p(np.exp(less - more))


@compiled
def trim(rows: RaggedRows) -> RaggedRows:
    """The same without the room that is left."""
    end = rows.offsets[-1]
    return RaggedRows(rows.offsets, rows.ids[:end], rows.logprobs[:end], rows.tail, rows.unknown)
