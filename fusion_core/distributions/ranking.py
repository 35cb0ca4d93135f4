"""The largest logits of each row, and what is left of the softmax without them."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

_LEAST_WIDTH, _MOST_WIDTH = 64, 256  # narrower blocks cost more to reduce, wider ones hold more candidates

_LEAST_EXPONENT = -80.0
"""Below it exp gives subnormal numbers, 20 times as slowly; a million of its kind add 2e-29 to a sum of at least 1."""


def rank_ids(logits: Float[Tensor, "rows vocab"], k: int) -> Int[Tensor, "rows k"]:
    """The ids of the `k` largest logits of each row (all of them if there are fewer), falling, ties by id.

    The `k` largest lie in the `k` blocks of neighbours with the largest maxima (of equal maxima: in the first ones),
    so that after one pass for the maxima only `k` blocks are looked at. float64 is ranked as fp32, as if rounded.
    """
    rows, vocab = logits.shape
    k = min(k, vocab)
    width = 2 ** round(math.log2(max(vocab / max(k, 1), 1)) / 2)
    width = min(max(width, _LEAST_WIDTH), _MOST_WIDTH)
    blocks = vocab // width
    if 2 * k >= blocks:
        return _rank_places(logits, k)
    maxima = logits[:, : blocks * width].reshape(rows, blocks, width).amax(2)
    chosen = _rank_places(maxima, k).sort(1).values  # rising, so that among the candidates places rise with ids
    ids = (chosen.unsqueeze(2) * width + torch.arange(width, device=logits.device)).flatten(1)
    after_blocks = torch.arange(blocks * width, vocab, device=logits.device).expand(rows, -1)
    ids = torch.cat([ids, after_blocks], 1)
    return ids.gather(1, _rank_places(logits.gather(1, ids), k))


def split_off(
    logits: Float[Tensor, "rows columns"], ids: Int[Tensor, "rows k"]
) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "rows"], Float[Tensor, "rows"]]:
    """The logits of `ids`, the log-sum-exp of all others, and that of all; `logits` are used up.

    One pass of exp over the columns: what the few contribute to the sum of all is added to the others' afterwards.
    """
    values = logits.gather(1, ids)
    rest = logits.scatter_(1, ids, -torch.inf)
    largest = rest.amax(1, keepdim=True)
    nothing = largest.squeeze(1) == -torch.inf
    largest = largest.clamp_(min=torch.finfo(rest.dtype).min)
    parts = rest.sub_(largest).clamp_(min=_LEAST_EXPONENT).exp_()
    log_rest = parts.sum(1).log_().add_(largest.squeeze(1)).masked_fill_(nothing, -torch.inf)
    return values, log_rest, torch.cat([values, log_rest.unsqueeze(1)], 1).logsumexp(1)


def _rank_places(values: Float[Tensor, "rows columns"], k: int) -> Int[Tensor, "rows k"]:
    """The places of the `k` largest values, falling, ties by place.

    `topk` alone leaves open which of several equal values it returns (in half precision equals are common), so it is
    given integers that are never equal: the value's bits in an order of their own, then the place from the end.
    """
    bits = (values.float() + 0.0).view(torch.int32)  # + 0.0: minus zero equals zero
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats' bits rise as the floats fall
    columns = values.shape[1]
    places = torch.arange(columns - 1, -1, -1, device=values.device)
    return ((rising.long() << 32) + places).topk(k, dim=1).indices
