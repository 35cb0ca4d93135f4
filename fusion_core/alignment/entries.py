"""Ragged entries (row, something, log-probability): gathered from distributions, summed, made into one."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fusion_core.types import TokenDist

NO_ROW = -1


def gather_entries(
    dist: TokenDist, rows: Int[Tensor, "rows"]
) -> tuple[Int[Tensor, "entries"], Int[Tensor, "entries"], Float[Tensor, "entries"]]:
    """Entries of the given rows in order: position in `rows`, id, float64 log-probability. -1 has none."""
    places = (rows != NO_ROW).nonzero().squeeze(1)
    starts = dist.row_offsets[rows[places]]
    widths = dist.row_offsets[rows[places] + 1] - starts
    shift = starts - (widths.cumsum(0) - widths)
    shift_of_entry = shift.repeat_interleave(widths)
    entries = torch.arange(len(shift_of_entry), device=rows.device) + shift_of_entry
    return places.repeat_interleave(widths), dist.ids[entries].long(), dist.logprobs[entries].double()


def gather_missing(dist: TokenDist, rows: Int[Tensor, "rows"]) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows"]]:
    """Tail and unknown of the given rows in float64; for -1 no tail, and everything unknown."""
    places = (rows != NO_ROW).nonzero().squeeze(1)
    tail = torch.full(rows.shape, -torch.inf, dtype=torch.float64, device=rows.device)
    unknown = torch.zeros_like(tail)
    tail[places] = dist.tail_logprob[rows[places]].double()
    unknown[places] = dist.unknown_logprob[rows[places]].double()
    return tail, unknown


def log_sum(group: Int[Tensor, "n"], logprobs: Float[Tensor, "n"], num_groups: int) -> Float[Tensor, "groups"]:
    """Log of the summed probability of each group; -inf for an empty one."""
    peak = logprobs.new_full((num_groups,), -torch.inf).scatter_reduce(0, group, logprobs, "amax")
    finite_peak = peak.clamp(min=torch.finfo(peak.dtype).min)
    total = torch.zeros_like(peak).index_add(0, group, (logprobs - finite_peak[group]).exp())
    return total.log() + finite_peak


def log_subtract(whole: Float[Tensor, "n"], part: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Log of the difference of two probabilities; -inf where rounding leaves nothing."""
    share = (part - whole).nan_to_num(nan=0.0).clamp(max=0.0)
    return whole + torch.log1p(-share.exp())


def make_rows(
    row: Int[Tensor, "n"],
    ids: Int[Tensor, "n"],
    logprobs: Float[Tensor, "n"],
    tail: Float[Tensor, "rows"],
    unknown: Float[Tensor, "rows"],
    vocab_size: int,
) -> TokenDist:
    """The distribution of the given entries: those of equal row and id summed, ids rising within a row.

    A row without entries and tail is made absent: all of its mass is unknown.
    """
    keys, group = torch.unique(row * vocab_size + ids, return_inverse=True)
    widths = torch.bincount(keys // vocab_size, minlength=len(tail))
    absent = (widths == 0) & (tail == -torch.inf)
    return TokenDist(
        row_offsets=torch.cat([widths.new_zeros(1), widths.cumsum(0)]),
        ids=keys % vocab_size,
        logprobs=log_sum(group, logprobs, len(keys)),
        tail_logprob=tail,
        unknown_logprob=unknown.masked_fill(absent, 0.0),
        vocab_size=vocab_size,
    )


def cast_logprobs(dist: TokenDist, dtype: torch.dtype) -> TokenDist:
    """The same with all log-probabilities of another type."""
    values = (dist.logprobs.to(dtype), dist.tail_logprob.to(dtype), dist.unknown_logprob.to(dtype))
    return TokenDist(dist.row_offsets, dist.ids, *values, dist.vocab_size)
