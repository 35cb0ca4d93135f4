"""Whole rows of a source on the target's ids: what every alignment does where nothing has to be refined."""

import numpy as np
import torch
from jaxtyping import Int
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
from fusion_core.compilation import compiled
from fusion_core.distributions.kernels import (
    Doubles,
    Flags,
    Places,
    RaggedRows,
    as_arrays,
    log_add,
    make_in_blocks,
    new_rows,
    trim,
    write_row,
)
from fusion_core.types import TokenDist


def project_rows(dist: TokenDist, row: Int[Tensor, "target_tokens"], pair: Pair) -> TokenDist:
    """The source's rows `row` on the target's ids, collisions summed, ids rising in a row; absent for -1.

    Candidates that the map sends nowhere are unknown mass if they have bytes, else tail. Log-probabilities are fp32, or
    fp64 if the source's are; sums are made in fp64. On the CPU a kernel goes through the rows, on as many threads as
    torch uses; for other devices see `project_entries`.

    Raises:
        ValueError: an id outside the source's vocabulary.
    """
    _check_ids(dist, pair)
    dtype = torch.promote_types(dist.logprobs.dtype, torch.float32)
    if row.device.type != "cpu":
        return cast_logprobs(project_entries(dist, row, pair), dtype)
    source, rows = as_arrays(dist, dtype), row.numpy()
    target_of, homeless = pair.vocab_map.ids.numpy(), pair.homeless.numpy()
    return make_in_blocks(
        lambda start, stop: _project(source, rows[start:stop], target_of, homeless), len(rows), pair.target.size
    )


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


@compiled
def _project(source: RaggedRows, rows: Places, target_of: Places, homeless: Flags) -> RaggedRows:
    """The given rows on the target's ids."""
    capacity, widest = 0, 0
    for row in rows:
        if row != NO_ROW:
            width = source.offsets[row + 1] - source.offsets[row]
            capacity, widest = capacity + width, max(widest, width)
    found = new_rows(len(rows), capacity, source.logprobs)
    ids, logprobs = np.empty(widest, np.int64), np.empty(widest, np.float64)
    for place, row in enumerate(rows):
        width, tail, unknown = 0, -np.inf, 0.0
        if row != NO_ROW:
            width, tail, unknown = _project_row(source, row, target_of, homeless, ids, logprobs)
        write_row(found, place, ids, logprobs, width)
        found.tail[place], found.unknown[place] = tail, unknown if width > 0 or tail > -np.inf else 0.0
    return trim(found)


@compiled
def _project_row(
    source: RaggedRows, row: int, target_of: Places, homeless: Flags, ids: Places, logprobs: Doubles
) -> tuple[int, float, float]:
    """How many candidates of a row have a place, its tail and unknown mass; their target ids go to `ids`."""
    width, tail, unknown = 0, float(source.tail[row]), float(source.unknown[row])
    for entry in range(source.offsets[row], source.offsets[row + 1]):
        token, logprob = source.ids[entry], float(source.logprobs[entry])
        if target_of[token] >= 0:
            ids[width], logprobs[width] = target_of[token], logprob
            width += 1
        elif homeless[token]:
            unknown = log_add(unknown, logprob)
        else:
            tail = log_add(tail, logprob)
    return width, tail, unknown
