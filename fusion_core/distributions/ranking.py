"""The largest logits of each row, and what is left of the softmax without them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fusion_core.distributions.rows import offsets_of


def rank_ids(logits: Float[Tensor, "rows vocab"], k: int) -> Int[Tensor, "rows k"]:
    """The ids of the `k` largest logits of each row (all of them if there are fewer), falling, ties by id.

    `topk` alone leaves open which of several equal logits it returns; in half precision equals are common.
    """
    vocab = logits.shape[1]
    k = min(k, vocab)
    values, ids = logits.topk(min(k + 1, vocab), dim=1)
    ids = ids[:, :k].sort(1).values
    ids = ids.gather(1, logits.gather(1, ids).argsort(dim=1, descending=True, stable=True))
    if k < vocab:
        tied = (values[:, k - 1] == values[:, k]).nonzero().flatten()
        ids[tied] = _rank_tied(logits[tied], values[tied, k - 1 : k], k)
    return ids


def _rank_tied(logits: Float[Tensor, "rows vocab"], least: Float[Tensor, "rows 1"], k: int) -> Int[Tensor, "rows k"]:
    """`rank_ids` of rows in which not all ids with the k-th largest logit have a place."""
    row, ids = (logits >= least).nonzero(as_tuple=True)
    order = logits[row, ids].argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    first = offsets_of(torch.bincount(row, minlength=len(logits)))[:-1]
    return ids[order[first.unsqueeze(1) + torch.arange(k, device=row.device)]]


def split_off(
    logits: Float[Tensor, "rows columns"], ids: Int[Tensor, "rows k"]
) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "rows"], Float[Tensor, "rows"]]:
    """The logits of `ids`, the log-sum-exp of all others, and that of all; `logits` are used up.

    One pass of exp over the columns: what the few contribute to the sum of all is added to the others' afterwards.
    """
    values = logits.gather(1, ids)
    rest = logits.scatter_(1, ids, -torch.inf)
    largest = rest.amax(1, keepdim=True).clamp_(min=torch.finfo(rest.dtype).min)
    log_rest = rest.sub_(largest).exp_().sum(1).log_().add_(largest.squeeze(1))
    return values, log_rest, torch.cat([values, log_rest.unsqueeze(1)], 1).logsumexp(1)
