"""The weighted sum of distributions."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fusion_core.compilation import compiled
from fusion_core.distributions.kernels import (
    Floats,
    RaggedRows,
    as_arrays,
    log_add,
    make_in_blocks,
    new_rows,
    trim,
    write_row,
)
from fusion_core.distributions.rows import concatenate, shared_vocab_size
from fusion_core.types import TokenDist


def mix(dists: Sequence[TokenDist], weights: Float[Tensor, "dists rows"]) -> TokenDist:
    """The weighted sum of the distributions, row by row, kept on the union of their ids; ids rise in a row.

    weights: not negative, sum to one in each row. A weight of zero leaves that row of that distribution out.

    A distribution's tail lies outside its own ids, but may lie on an id that only another one keeps. So it
    stays tail where the distribution keeps the whole union, and is unknown elsewhere. What was unknown
    stays so: a distribution that is absent in a row makes its weight unknown there.

    Log-probabilities are fp32. On the CPU a kernel goes through the rows, on as many threads as torch uses; for other
    devices see `mix_entries`. Raises ValueError for other vocabularies, numbers of rows or weights.
    """
    vocab_size = shared_vocab_size(dists)
    _check_weights(weights, len(dists), [dist.num_rows for dist in dists])
    if weights.device.type != "cpu":
        return mix_entries(dists, weights)
    rows, log_weights = as_arrays(concatenate(dists), torch.float32), weights.float().log().numpy()
    return make_in_blocks(lambda start, stop: _mix(rows, log_weights, start, stop), dists[0].num_rows, vocab_size)


def mix_entries(dists: Sequence[TokenDist], weights: Float[Tensor, "dists rows"]) -> TokenDist:
    """What `mix` returns, made by sorting all entries of the shard: for any device."""
    vocab_size, num_rows = dists[0].vocab_size, dists[0].num_rows
    log_weights = weights.float().log()
    keys, logprobs = [], []
    for dist, log_weight in zip(dists, log_weights, strict=True):
        row = dist.row_of_entry
        counts = log_weight[row] > -torch.inf
        keys.append((row * vocab_size + dist.ids)[counts])
        logprobs.append((dist.logprobs.float() + log_weight[row])[counts])
    union = torch.cat(keys).unique()  # type: ignore[no-untyped-call]
    offsets = torch.searchsorted(union, torch.arange(num_rows + 1, device=union.device) * vocab_size)

    kept = torch.full(union.shape, -torch.inf, dtype=torch.float32, device=union.device)
    tail = torch.full((num_rows,), -torch.inf, dtype=torch.float32, device=union.device)
    unknown = tail
    for dist, log_weight, key, logprob in zip(dists, log_weights, keys, logprobs, strict=True):
        at = torch.searchsorted(union, key)
        kept[at] = torch.logaddexp(kept[at], logprob)
        own_tail = dist.tail_logprob.float() + log_weight
        complete = dist.row_offsets.diff() == offsets.diff()
        tail = torch.logaddexp(tail, own_tail.masked_fill(~complete, -torch.inf))
        unknown = torch.logaddexp(unknown, own_tail.masked_fill(complete, -torch.inf))
        unknown = torch.logaddexp(unknown, dist.unknown_logprob.float() + log_weight)
    return TokenDist(offsets, union % vocab_size, kept, tail, unknown, vocab_size)


@compiled
def _mix(rows: RaggedRows, log_weights: Floats, start: int, stop: int) -> RaggedRows:
    """The mixtures `start..stop-1`; row `r` of distribution `d` is row `d * log_weights.shape[1] + r`."""
    num_dists, num_rows = log_weights.shape
    capacity, widest = 0, 0
    for row in range(start, stop):
        width = 0
        for at in range(row, num_dists * num_rows, num_rows):
            width += rows.offsets[at + 1] - rows.offsets[at]
        capacity, widest = capacity + width, max(widest, width)
    mixed = new_rows(stop - start, capacity, rows.logprobs)
    ids, logprobs = np.empty(widest, np.int64), np.empty(widest, np.float64)
    for place in range(stop - start):
        width = 0
        for dist in range(num_dists):
            log_weight, at = log_weights[dist, start + place], dist * num_rows + start + place
            if log_weight > -np.inf:
                for entry in range(rows.offsets[at], rows.offsets[at + 1]):
                    ids[width], logprobs[width] = rows.ids[entry], rows.logprobs[entry] + log_weight
                    width += 1
        write_row(mixed, place, ids, logprobs, width)
        union = mixed.offsets[place + 1] - mixed.offsets[place]
        mixed.tail[place], mixed.unknown[place] = _mix_missing(rows, log_weights, start + place, union)
    return trim(mixed)


@compiled
def _mix_missing(rows: RaggedRows, log_weights: Floats, row: int, union: int) -> tuple[float, float]:
    """Tail and unknown of a mixture that keeps `union` ids."""
    tail, unknown = -np.inf, -np.inf
    for dist in range(len(log_weights)):
        log_weight, at = log_weights[dist, row], dist * log_weights.shape[1] + row
        own_tail = rows.tail[at] + log_weight
        if rows.offsets[at + 1] - rows.offsets[at] == union:
            tail = log_add(tail, own_tail)
        else:
            unknown = log_add(unknown, own_tail)
        unknown = log_add(unknown, rows.unknown[at] + log_weight)
    return tail, unknown


def _check_weights(weights: Tensor, num_dists: int, rows: Sequence[int]) -> None:
    if len(set(rows)) != 1 or weights.shape != (num_dists, rows[0]):
        raise ValueError(
            f"expected weights of shape {(num_dists, rows[0])} for distributions of equally many rows, found"
            f" {tuple(weights.shape)} for {rows} rows; pass one weight per distribution and row"
        )
    if not (bool((weights >= 0).all()) and torch.allclose(weights.sum(0), weights.new_ones(()), atol=1e-4)):
        raise ValueError(
            "expected weights that are not negative and sum to 1 in each row, found others; divide by the sum"
        )
