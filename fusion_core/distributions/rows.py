"""Ragged rows: made, joined, taken, padded."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fusion_core.types import TokenDist


def absent_rows(num_rows: int, vocab_size: int, device: torch.device | str = "cpu") -> TokenDist:
    """Rows that nothing is known about. Raises ValueError for fewer than 0."""
    if num_rows < 0:
        raise ValueError(f"expected at least 0 rows, found {num_rows}; pass how many tokens the documents have")
    return TokenDist(
        row_offsets=torch.zeros(num_rows + 1, dtype=torch.int64, device=device),
        ids=torch.empty(0, dtype=torch.int64, device=device),
        logprobs=torch.empty(0, dtype=torch.float32, device=device),
        tail_logprob=torch.full((num_rows,), -torch.inf, dtype=torch.float32, device=device),
        unknown_logprob=torch.zeros(num_rows, dtype=torch.float32, device=device),
        vocab_size=vocab_size,
    )


def concatenate(dists: Sequence[TokenDist]) -> TokenDist:
    """The rows of all distributions, one after the other. Raises ValueError unless they share a vocabulary."""
    vocab_size = shared_vocab_size(dists)
    widths = torch.cat([dist.row_offsets.diff() for dist in dists])
    return TokenDist(
        row_offsets=offsets_of(widths),
        ids=torch.cat([dist.ids for dist in dists]),
        logprobs=torch.cat([dist.logprobs for dist in dists]),
        tail_logprob=torch.cat([dist.tail_logprob for dist in dists]),
        unknown_logprob=torch.cat([dist.unknown_logprob for dist in dists]),
        vocab_size=vocab_size,
    )


def take_rows(dist: TokenDist, index: Int[Tensor, "taken"]) -> TokenDist:
    """The rows named by `index`, in its order, repeats allowed; -1 gives an absent row.

    Raises ValueError for an index of no row.
    """
    if len(index) and not -1 <= int(index.min()) <= int(index.max()) < dist.num_rows:
        raise ValueError(
            f"expected an index in 0..{dist.num_rows - 1}, or -1 for none, found {int(index.min())}.."
            f"{int(index.max())}; pass rows to take from"
        )
    taken = index >= 0
    if not dist.num_rows:
        return absent_rows(len(index), dist.vocab_size, index.device)
    source = index.clamp(min=0)
    offsets = offsets_of(dist.row_offsets.diff()[source] * taken)
    widths = offsets.diff()
    shift = dist.row_offsets[source] - offsets[:-1]
    entries = torch.arange(int(offsets[-1]), device=index.device) + shift.repeat_interleave(widths)
    return TokenDist(
        row_offsets=offsets,
        ids=dist.ids[entries],
        logprobs=dist.logprobs[entries],
        tail_logprob=dist.tail_logprob[source].masked_fill(~taken, -torch.inf),
        unknown_logprob=dist.unknown_logprob[source].masked_fill(~taken, 0.0),
        vocab_size=dist.vocab_size,
    )


def choose_rows(first: Bool[Tensor, "rows"], ours: TokenDist, others: TokenDist) -> TokenDist:
    """Our rows where `first` says so, the others' elsewhere."""
    index = torch.arange(len(first), device=first.device)
    return take_rows(concatenate([ours, others]), index + len(first) * ~first)


def pad(dist: TokenDist) -> tuple[Int[Tensor, "rows width"], Float[Tensor, "rows width"]]:
    """Ids and log-probabilities as rectangles as wide as the widest row; padding is id 0 with -inf."""
    filled = filled_slots(dist)
    ids = dist.ids.new_zeros(filled.shape)
    logprobs = dist.logprobs.new_full(filled.shape, -torch.inf)
    ids[filled] = dist.ids
    logprobs[filled] = dist.logprobs
    return ids, logprobs


def filled_slots(dist: TokenDist) -> Bool[Tensor, "rows width"]:
    """Which places of the padded rectangle hold an entry; read row by row, they are the entries in order."""
    widths = dist.row_offsets.diff()
    width = int(widths.max()) if dist.num_rows else 0
    return torch.arange(width, device=widths.device) < widths.unsqueeze(1)


def normalize_known(dist: TokenDist) -> TokenDist:
    """The same rows given what is known: kept and tail divided by 1 - unknown; absent rows stay absent.

    The divisor is the sum of kept and tail itself, so the rows also lose the rounding of storage.
    """
    kept = pad(dist)[1].float()
    tail = dist.tail_logprob.float()
    log_known = torch.cat([kept, tail.unsqueeze(1)], 1).logsumexp(1)
    divisor = log_known.masked_fill(~dist.present, 0.0)
    return TokenDist(
        row_offsets=dist.row_offsets,
        ids=dist.ids,
        logprobs=dist.logprobs.float() - divisor[dist.row_of_entry],
        tail_logprob=tail - divisor,
        unknown_logprob=torch.zeros_like(tail).masked_fill(dist.present, -torch.inf),
        vocab_size=dist.vocab_size,
    )


def offsets_of(widths: Int[Tensor, "rows"]) -> Int[Tensor, "rows_plus_one"]:
    """Where each row begins, and where the last one ends, from the number of entries of each."""
    return torch.cat([widths.new_zeros(1), widths.cumsum(0)])


def shared_vocab_size(dists: Sequence[TokenDist]) -> int:
    """The size of the vocabulary of all distributions. Raises ValueError if there isn't one."""
    sizes = {dist.vocab_size for dist in dists}
    if len(sizes) != 1:
        found = ", ".join(map(str, sorted(sizes))) or "no distribution at all"
        raise ValueError(f"expected distributions over one vocabulary, found sizes: {found}; align them first")
    return sizes.pop()
