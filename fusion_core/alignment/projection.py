"""Whole rows of a source on the target's ids: what every alignment does where nothing has to be refined.

On the CPU one kernel goes through the rows, which are short: no entry is written down twice, and no list is sorted that
is longer than a row. On another device the same is done with all entries of the shard at once.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from fusion_core.alignment.entries import (
    NO_ROW,
    cast_logprobs,
    gather_entries,
    gather_missing,
    log_sum,
    make_rows,
)
from fusion_core.alignment.pair import Pair
from fusion_core.distributions import concatenate
from fusion_core.edit_distance import compiled
from fusion_core.types import TokenDist

Floats = NDArray[np.float32] | NDArray[np.float64]
Doubles = NDArray[np.float64]
Places = NDArray[np.int64]
Flags = NDArray[np.bool_]

SHORT = 32
"""Rows of up to so many candidates are sorted by insertion."""


def project_rows(dist: TokenDist, row: Int[Tensor, "target_tokens"], pair: Pair) -> TokenDist:
    """The source's rows `row` on the target's ids, collisions summed, ids rising in a row; absent for -1.

    Candidates that the map sends nowhere are unknown mass if they have bytes, else tail. Log-probabilities are fp32, or
    fp64 if the source's are; sums are made in fp64. Rows are spread over as many threads as torch uses.

    Raises:
        ValueError: an id outside the source's vocabulary.
    """
    _check_ids(dist, pair)
    dtype = torch.promote_types(dist.logprobs.dtype, torch.float32)
    if row.device.type != "cpu":
        return cast_logprobs(project_entries(dist, row, pair), dtype)
    floats = (values.to(dtype).numpy() for values in (dist.logprobs, dist.tail_logprob, dist.unknown_logprob))
    source = _Rows(dist.row_offsets.numpy(), dist.ids.numpy(), *floats)
    target_of, homeless = pair.vocab_map.ids.numpy(), pair.homeless.numpy()

    def project_block(rows: Places) -> TokenDist:
        found = map(torch.from_numpy, _project(source, rows, target_of, homeless))
        offsets, ids, logprobs, tail, unknown = found
        return TokenDist(offsets, ids, logprobs, tail, unknown, pair.target.size)

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        return concatenate(list(pool.map(project_block, np.array_split(row.numpy(), threads))))


def project_entries(dist: TokenDist, row: Int[Tensor, "target_tokens"], pair: Pair) -> TokenDist:
    """What `project_rows` returns, in fp64 and made by sorting all entries of the shard: for any device."""
    owner, source_ids, logprobs = gather_entries(dist, row)
    target_ids = pair.vocab_map.ids.to(owner.device)[source_ids]
    maps, has_bytes = target_ids >= 0, pair.homeless.to(owner.device)[source_ids]
    nowhere, lost = ~maps & ~has_bytes, ~maps & has_bytes
    tail, unknown = gather_missing(dist, row)
    tail = torch.logaddexp(tail, log_sum(owner[nowhere], logprobs[nowhere], len(row)))
    unknown = torch.logaddexp(unknown, log_sum(owner[lost], logprobs[lost], len(row)))
    return make_rows(owner[maps], target_ids[maps], logprobs[maps], tail, unknown, pair.target.size)


def _check_ids(dist: TokenDist, pair: Pair) -> None:
    least, most = map(int, dist.ids.aminmax()) if len(dist.ids) else (0, 0)
    if least < 0 or most >= pair.source.size:
        raise ValueError(
            f"candidates must be ids of the source's vocabulary, 0..{pair.source.size - 1}, but found {least}..{most}; "
            "make the pair with the vocabulary of the model that gave them"
        )


class _Rows(NamedTuple):
    """A `TokenDist` for the kernels."""

    offsets: Places
    ids: Places
    logprobs: Floats
    tail: Floats
    unknown: Floats


@compiled
def _project(source: _Rows, rows: Places, target_of: Places, homeless: Flags) -> _Rows:
    """The given rows on the target's ids."""
    capacity, widest = _measure(source, rows)
    found = _Rows(
        np.zeros(len(rows) + 1, np.int64),
        np.empty(capacity, np.int64),
        np.empty(capacity, source.logprobs.dtype),
        np.empty(len(rows), source.tail.dtype),
        np.empty(len(rows), source.unknown.dtype),
    )
    row_ids, row_logprobs = np.empty(widest, np.int64), np.empty(widest, np.float64)
    end = 0
    for place, row in enumerate(rows):
        width, tail, unknown = 0, -np.inf, 0.0
        if row != NO_ROW:
            width, tail, unknown = _project_row(source, row, target_of, homeless, row_ids, row_logprobs)
        for entry in range(width):
            found.ids[end + entry], found.logprobs[end + entry] = row_ids[entry], row_logprobs[entry]
        end += width
        found.offsets[place + 1] = end
        found.tail[place], found.unknown[place] = tail, unknown if width > 0 or tail > -np.inf else 0.0
    return _Rows(found.offsets, found.ids[:end], found.logprobs[:end], found.tail, found.unknown)


@compiled
def _project_row(
    source: _Rows, row: int, target_of: Places, homeless: Flags, ids: Places, logprobs: Doubles
) -> tuple[int, float, float]:
    """Number of entries, tail and unknown of one row; its entries are written to `ids` and `logprobs`."""
    width, tail, unknown = 0, float(source.tail[row]), float(source.unknown[row])
    for entry in range(source.offsets[row], source.offsets[row + 1]):
        token, logprob = source.ids[entry], float(source.logprobs[entry])
        if target_of[token] >= 0:
            ids[width], logprobs[width] = target_of[token], logprob
            width += 1
        elif homeless[token]:
            unknown = _log_add(unknown, logprob)
        else:
            tail = _log_add(tail, logprob)
    return _sum_equal(ids, logprobs, width), tail, unknown


@compiled
def _measure(source: _Rows, rows: Places) -> tuple[int, int]:
    """Entries of the given rows in all, and of the widest one."""
    total, widest = 0, 0
    for row in rows:
        if row != NO_ROW:
            width = source.offsets[row + 1] - source.offsets[row]
            total += width
            widest = max(widest, width)
    return total, widest


@compiled
def _sum_equal(ids: Places, logprobs: Doubles, width: int) -> int:
    """Sorts the first `width` entries by id and sums those of equal ids; returns how many are left."""
    if width > SHORT:
        order = np.argsort(ids[:width], kind="mergesort")
        ids[:width], logprobs[:width] = ids[:width][order], logprobs[:width][order]
    else:
        for i in range(1, width):
            token, logprob, place = ids[i], logprobs[i], i
            while place > 0 and ids[place - 1] > token:
                ids[place], logprobs[place] = ids[place - 1], logprobs[place - 1]
                place -= 1
            ids[place], logprobs[place] = token, logprob
    left = 0
    for i in range(width):
        if left > 0 and ids[left - 1] == ids[i]:
            logprobs[left - 1] = _log_add(logprobs[left - 1], logprobs[i])
        else:
            ids[left], logprobs[left] = ids[i], logprobs[i]
            left += 1
    return left


@compiled
def _log_add(a: float, b: float) -> float:
    """Log of the sum of two probabilities."""
    less, more = min(a, b), max(a, b)
    return more if less == -np.inf else more + np.log1p(np.exp(less - more))
