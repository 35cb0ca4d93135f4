"""Random draws that depend on a key per row and on nothing else: not on the batch, the chunk or the rows before.

The numbers are hashes of counters (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), the hash
being the finaliser of SplitMix64 (Steele et al. 2014). They are the same on every device.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_INCREMENT = -0x61C8864680B583EB  # 2**64 over the golden ratio; int64 arithmetic wraps around, as the hash wants
_FIRST_FACTOR = -0x40A7B892E31B1A47
_SECOND_FACTOR = -0x6B2FB644ECCEEE15


def draw_uniforms(keys: Int[Tensor, "rows"], count: int, seed: int) -> Float[Tensor, "rows count"]:
    """`count` float64 numbers in [0, 1) for each key; equal keys and seeds give equal numbers."""
    state = _hash(keys.long() + _hash(torch.full_like(keys, seed, dtype=torch.int64)))
    counters = torch.arange(1, count + 1, device=keys.device)
    bits = _hash(state.unsqueeze(1) + counters * _INCREMENT)
    return _shift_right(bits, 11).double() * 2.0**-53


def draw_ids(weights: Float[Tensor, "rows vocab"], uniforms: Float[Tensor, "rows count"]) -> Int[Tensor, "rows count"]:
    """Ids drawn in proportion to each row's weights, one from each `count`-th of its mass; they rise in a row.

    Such a stratified sample has the mean of independent draws, and for every function of the ids a variance
    that is not larger (Cochran 1977, section 5.6). Ids of weight 0 are never drawn.
    weights: not negative, with a positive sum in each row. uniforms: in [0, 1), where in its part each draw falls.
    """
    cumulative = weights.cumsum(1, dtype=torch.float64)
    total = cumulative[:, -1:]
    strata = torch.arange(uniforms.shape[1], device=uniforms.device)
    points = (strata + uniforms) / uniforms.shape[1] * total
    below_total = torch.nextafter(total, torch.zeros_like(total))  # rounding may lift a point to the total
    return torch.searchsorted(cumulative, torch.minimum(points, below_total), right=True)


def _hash(values: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    values = (values ^ _shift_right(values, 30)) * _FIRST_FACTOR
    values = (values ^ _shift_right(values, 27)) * _SECOND_FACTOR
    return values ^ _shift_right(values, 31)


def _shift_right(values: Int[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    """Shifted without regard to the sign, which `>>` would fill in."""
    unsigned: Tensor = (values >> bits) & (2 ** (64 - bits) - 1)
    return unsigned
