"""The original's two ways of making one target of several, as fusion strategies.

What it does at three places, in its collator, its packing and its trainer, happens here at once: a row's target is
the softmax of what the candidate keeps there, rounded to bf16, and the rewards exp(-CE), bf16 too, choose or mix.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad as pad_columns

from fusion_core.candidates import Strategy
from fusion_core.distributions import concatenate, pad
from fusion_core.distributions.rows import offsets_of
from fusion_core.reference.targets import (
    Targets,
    choose_sources,
    choose_targets,
    collate_targets,
    mix_targets,
    reward,
)
from fusion_core.types import Aligned, Fused, TokenDist, Tokens

_CHUNK_ROWS = 2**16  # mixing compares every two candidates of a row
Rewards = Float[Tensor, "rows sources"]


class _ByReward(Strategy):
    """What both ways have in common. Candidates need a `cross_entropy`, which reference alignments leave.

    A candidate without a finite one in a document (or block) takes no part there; where nobody has one, the rows are
    absent. Rows keep no tail, and sum to one up to their rounding to bf16.
    """

    kind: str
    level: Literal["sequence", "block"] = Field(
        default="sequence",
        title="Level",
        description="What has one reward: each document, or each block of packed documents, of its tokens' mean CE.",
    )
    block_tokens: int = Field(
        default=2048, ge=1, title="Block", description="Target tokens of a block; for the level block."
    )
    base_teaches: bool = Field(
        default=False,
        title="The target teaches",
        description=(
            "The first candidate is the target itself: it wins ties (the last candidate otherwise), and gives its row "
            "where another's has no candidate left."
        ),
    )
    trust: Literal["all", "reward"] = Field(
        default="all",
        title="Trust in the teacher",
        description="reward: only as much as its reward is known, the rest is left to the labels ('soft').",
    )

    def fuse(self, candidates: Sequence[Aligned], target: Tokens) -> Fused:
        """The rows that the rewards choose or mix; ValueError for candidates without cross-entropies."""
        rewards = self._rewards(candidates, target)
        parts = []
        for start in range(0, max(len(rewards), 1), _CHUNK_ROWS):
            stop = min(start + _CHUNK_ROWS, len(rewards))
            parts.append(self._fuse_rows([c.dist.rows(start, stop) for c in candidates], rewards[start:stop]))
        dist = concatenate(parts)
        return Fused(dist, self.heaviest(rewards).masked_fill(~dist.present, -1))

    @abstractmethod
    def combine(self, targets: Sequence[Targets], rewards: Rewards) -> Targets:
        """One target per row."""

    @abstractmethod
    def heaviest(self, rewards: Rewards) -> Int[Tensor, "rows"]:
        """Which candidate gives most of each row."""

    @abstractmethod
    def share(self, rewards: Rewards) -> Float[Tensor, "rows"]:
        """The teacher's part of a sequence's loss under soft weighting."""

    def _rewards(self, candidates: Sequence[Aligned], target: Tokens) -> Rewards:
        """bf16; -inf for who takes no part."""
        costs = [candidate.cross_entropy for candidate in candidates if candidate.cross_entropy is not None]
        if len(costs) != len(candidates):
            raise ValueError(
                f"{self.kind}: expected a cross-entropy per document from {len(candidates)} candidates, found it from "
                f"{len(costs)}; set alignment.reference to true"
            )
        per_row = torch.stack(costs, 1)[target.doc_of_token]
        if self.level == "block":
            per_row = _average_blocks(per_row.double(), self.block_tokens)
        return reward(per_row, torch.bfloat16).nan_to_num(nan=-torch.inf)

    def _fuse_rows(self, dists: Sequence[TokenDist], rewards: Rewards) -> TokenDist:
        base = _collate(dists[0], None) if self.base_teaches else None
        targets = [_round(_collate(dist, base)) for dist in dists]
        usable = rewards.isfinite().any(1)
        rewards = rewards.masked_fill(~usable.unsqueeze(1), 0.0)
        share = self.share(rewards.clamp(min=0.0)) if self.trust == "reward" else torch.ones_like(rewards[:, 0])
        return _as_rows(self.combine(targets, rewards), share.where(usable, 0.0), dists[0].vocab_size)


class ReferenceMinCE(_ByReward):
    """The candidate of the largest reward teaches, as in the original."""

    kind: Literal["reference_min_ce"] = "reference_min_ce"

    def combine(self, targets: Sequence[Targets], rewards: Rewards) -> Targets:
        """The chosen candidate's rows."""
        return choose_targets(targets, rewards, base_teaches=self.base_teaches)

    def heaviest(self, rewards: Rewards) -> Int[Tensor, "rows"]:
        """The chosen candidate."""
        return choose_sources(rewards, base_teaches=self.base_teaches)

    def share(self, rewards: Rewards) -> Float[Tensor, "rows"]:
        """The largest reward."""
        return rewards.amax(1)


class ReferenceAvgCE(_ByReward):
    """All candidates teach with weights softmax(exp(-CE)), nearly equal ones, as in the original."""

    kind: Literal["reference_avg_ce"] = "reference_avg_ce"

    def combine(self, targets: Sequence[Targets], rewards: Rewards) -> Targets:
        """The weighted sum."""
        return mix_targets(targets, rewards)

    def heaviest(self, rewards: Rewards) -> Int[Tensor, "rows"]:
        """The candidate of the largest weight, the first of equal ones."""
        return rewards.argmax(1)

    def share(self, rewards: Rewards) -> Float[Tensor, "rows"]:
        """The mean reward."""
        return rewards.mean(1)


def _average_blocks(per_row: Float[Tensor, "rows sources"], block_tokens: int) -> Float[Tensor, "rows sources"]:
    """Each row's mean over its block of `block_tokens` rows; the last block may be shorter."""
    block = torch.arange(len(per_row), device=per_row.device) // block_tokens
    number = -(-len(per_row) // block_tokens)
    total = per_row.new_zeros(number, per_row.shape[1]).index_add_(0, block, per_row)
    return (total / torch.bincount(block, minlength=number).unsqueeze(1))[block]


def _collate(dist: TokenDist, base: Targets | None) -> Targets:
    """Each row as a sequence of one position, in fp32 before its rounding; the base's where it has no candidate."""
    ids, logprobs = pad(dist)
    ids, logprobs = pad_columns(ids, (0, 1)), pad_columns(logprobs, (0, 1), value=-torch.inf)  # a column at least
    peak = logprobs.amax(1, keepdim=True).clamp(min=torch.finfo(logprobs.dtype).min)
    logits = (logprobs - peak).float()  # differences of rounded logits are exact, so fp32 is what bf16 is computed in
    lengths = torch.ones(len(ids), dtype=torch.int64, device=ids.device)
    return collate_targets(ids.unsqueeze(1), logits.unsqueeze(1), lengths, pad_id=0, base=base, dtype=torch.float32)


def _round(targets: Targets) -> Targets:
    return Targets(targets.ids, targets.probs.bfloat16())


def _as_rows(targets: Targets, share: Float[Tensor, "rows"], vocab_size: int) -> TokenDist:
    """Ragged rows with that share of their mass, the rest being unknown; absent for a share of 0."""
    probs, share = targets.probs.squeeze(1).double(), share.double()
    filled: Bool[Tensor, "rows width"] = (probs > 0) & (share > 0).unsqueeze(1)
    widths = filled.sum(1)
    return TokenDist(
        row_offsets=offsets_of(widths),
        ids=targets.ids.squeeze(1)[filled],
        logprobs=(probs.log() + share.log().unsqueeze(1))[filled],
        tail_logprob=torch.full_like(share, -torch.inf),
        unknown_logprob=torch.log1p(-share).masked_fill(widths == 0, 0.0),
        vocab_size=vocab_size,
    )
