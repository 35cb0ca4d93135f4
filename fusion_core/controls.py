"""Teachers that know nothing of the sources: what is gained with one of these is regularisation, not knowledge.

A control takes the place of a fused teacher, row by row: where that one is absent, so is the control. Its rows are
wholly known, and `winner` says whose row each replaces.
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from fusion_core.distributions import take_rows
from fusion_core.spec import Spec
from fusion_core.types import Fused, TokenDist, Tokens


class Shuffled(Spec):
    """The fused teacher's own rows, each in another one's place."""

    kind: Literal["shuffled"] = "shuffled"
    seed: int = Field(default=0, ge=0, title="Seed", description="Of the order.")

    def __call__(self, fused: Fused, target: Tokens) -> Fused:
        """The present rows of the shard in a random order."""
        present = fused.dist.present.nonzero().squeeze(1)
        order = torch.randperm(len(present), generator=torch.Generator().manual_seed(self.seed))
        index = torch.arange(fused.dist.num_rows, device=present.device)
        index[present] = present[order.to(present.device)]
        return Fused(take_rows(fused.dist, index), fused.winner[index])


class Uniform(Spec):
    """Every token of the vocabulary is as likely: label smoothing by 1 - lm_weight (Szegedy et al. 2016, section 7).

    A row keeps one token drawn from each of `candidates` equal parts of the vocabulary, with that part's mass: an
    unbiased estimate of the whole row's soft cross-entropy and of its gradient.
    """

    kind: Literal["uniform"] = "uniform"
    candidates: int = Field(default=32, ge=1, title="Candidates", description="Tokens drawn for each row.")
    seed: int = Field(default=0, ge=0, title="Seed", description="Of the draws.")

    def __call__(self, fused: Fused, target: Tokens) -> Fused:
        """Rows of `candidates` tokens, or of the whole vocabulary where it has fewer."""
        vocab_size, rows = fused.dist.vocab_size, int(fused.dist.present.sum())
        parts = min(self.candidates, vocab_size)
        edges = torch.arange(parts + 1) * vocab_size // parts
        widths = edges.diff()
        drawn = torch.rand(rows, parts, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed))
        ids = edges[:-1] + (drawn * widths).long()
        logprobs = (widths.double() / vocab_size).log().float()
        return _fill(fused, ids, logprobs.expand(rows, -1), -torch.inf)


class Unigram(Spec):
    """How often each token stands in the shard, whatever came before: the `k` most frequent, the rest as tail."""

    kind: Literal["unigram"] = "unigram"
    k: int = Field(default=64, ge=1, title="Candidates", description="Tokens kept; ties to the lower id.")

    def __call__(self, fused: Fused, target: Tokens) -> Fused:
        """The same row everywhere. What begins a document is nobody's label and isn't counted."""
        labels = torch.ones_like(target.ids, dtype=torch.bool)
        labels[target.doc_offsets[:-1]] = False
        counts = torch.bincount(target.ids[labels], minlength=fused.dist.vocab_size)
        kept = counts.argsort(descending=True, stable=True)[: min(self.k, int((counts > 0).sum()))]
        probs = counts[kept].double() / counts.sum()
        tail = torch.log1p(-probs.sum().clamp(max=1.0)).item() if len(kept) < int((counts > 0).sum()) else -torch.inf
        rows = int(fused.dist.present.sum())
        return _fill(fused, kept.expand(rows, -1), probs.log().float().expand(rows, -1), tail)


Control = Annotated[Shuffled | Uniform | Unigram, Field(discriminator="kind")]


def _fill(
    fused: Fused, ids: Int[Tensor, "present k"], logprobs: Float[Tensor, "present k"], tail_logprob: float
) -> Fused:
    """The teacher with these rows where it has one."""
    present = fused.dist.present
    widths = present.long() * ids.shape[1]
    nothing = torch.full_like(fused.dist.tail_logprob, -torch.inf)
    dist = TokenDist(
        row_offsets=torch.cat([widths.new_zeros(1), widths.cumsum(0)]),
        ids=ids.reshape(-1).to(present.device),
        logprobs=logprobs.reshape(-1).to(present.device),
        tail_logprob=torch.where(present, tail_logprob, nothing),
        unknown_logprob=torch.where(present, nothing, torch.zeros_like(nothing)),
        vocab_size=fused.dist.vocab_size,
    )
    return replace(fused, dist=dist)
