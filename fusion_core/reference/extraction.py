"""What the original keeps of a forward pass."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from fusion_core.distributions.ranking import rank_ids


@dataclass(frozen=True)
class Extracted:
    """A batch as the original stores it, everything but the ids in fp16.

    ids, logits: the largest logits of each row, falling; padding rows are not told apart.
    nll: nats of each next token, 0 where there is none. cross_entropy: their mean per sequence, NaN for one token.
    """

    ids: Int[Tensor, "batch seq k"]
    logits: Float[Tensor, "batch seq k"]
    nll: Float[Tensor, "batch labels"]
    cross_entropy: Float[Tensor, "batch"]


def mean_nll(nll: Float[Tensor, "tokens"], doc_offsets: Int[Tensor, "docs_plus_one"]) -> Float[Tensor, "docs"]:
    """The cross-entropy of each document in nats per token, as the original's fp16 has it.

    nll: of each token's label, NaN where there is none: the last token of a document, all tokens of one that couldn't
    be read, those that are no text of a conversation. Documents without labels have NaN. Past 2,048 the sum of a
    document is a multiple of 2.
    """
    has_label, sizes = ~nll.isnan(), doc_offsets.diff()
    document = torch.arange(len(sizes), device=nll.device).repeat_interleave(sizes)[has_label]
    total = torch.zeros(len(sizes), dtype=torch.float64, device=nll.device)
    total.index_add_(0, document, nll[has_label].half().double())
    return total.half() / torch.bincount(document, minlength=len(sizes))


def extract(
    logits: Float[Tensor, "batch seq vocab"],
    labels: Int[Tensor, "batch seq"],
    attention_mask: Int[Tensor, "batch seq"],
    k: int,
) -> Extracted:
    """The `k` largest logits of each row and the sequences' cross-entropies, after rounding the logits to fp16.

    labels: the input ids, not shifted; -100 for padding. Of equal logits the lower id comes first; the original
    leaves that open.
    Raises ValueError for a `k` that the vocabulary doesn't have, or labels and mask of another shape.
    """
    if logits.ndim != 3 or labels.shape != logits.shape[:2] or attention_mask.shape != labels.shape:
        raise ValueError(
            f"expected logits [batch, seq, vocab] with one label and one mask per row, found {tuple(logits.shape)}, "
            f"{tuple(labels.shape)} and {tuple(attention_mask.shape)}; pass them as the model read them"
        )
    batch, seq, vocab = logits.shape
    if not 1 <= k <= vocab:
        raise ValueError(f"expected a k in 1..{vocab}, the size of the vocabulary, found {k}; take a smaller one")
    half = logits.to(torch.float16)
    ids = rank_ids(half.flatten(0, 1), k).view(batch, seq, k)
    is_label = attention_mask[:, 1:]
    nll = cross_entropy(half[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none").view(batch, seq - 1)
    mean = (nll * is_label).sum(1) / is_label.sum(1)
    return Extracted(ids, half.gather(-1, ids), nll, mean)
