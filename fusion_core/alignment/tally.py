"""What the target puts where a source's token begins, counted over a shard."""

import torch
from jaxtyping import Bool
from torch import Tensor

from fusion_core.alignment.entries import NO_ROW
from fusion_core.alignment.rows import common_rows
from fusion_core.pair_counts import PairCounts
from fusion_core.types import NO_BOUNDARY, Tokens


def tally_pairs(source: Tokens, target: Tokens) -> PairCounts:
    """How often each target token begins where each source token begins.

    A candidate of a source's row is a token that would begin at the row's boundary, and its place in the target is the
    token that the target would begin there. So at every boundary that both have, within one document, the two tokens
    that follow are a pair, however far either goes on. It counts where the ends of both are proven, which leaves out
    tokens without bytes; and not at a document's beginning, where a token may hold a space that is no byte of the text.

    Raises:
        ValueError: another number of documents, or a document's boundaries don't rise.
    """
    common = common_rows(source, target)
    places = ((common != NO_ROW) & (target.boundaries > 0) & _is_followed(target)).nonzero().squeeze(1)
    places = places[_is_followed(source)[common[places]]]
    return PairCounts.of(source.ids[common[places] + 1], target.ids[places + 1], torch.ones_like(places))


def _is_followed(tokens: Tokens) -> Bool[Tensor, "tokens"]:
    """Whether a token of the same document whose end is proven comes next."""
    followed = torch.zeros_like(tokens.ids, dtype=torch.bool)
    followed[:-1] = (tokens.boundaries[1:] != NO_BOUNDARY) & (tokens.doc_of_token.diff() == 0)
    return followed
