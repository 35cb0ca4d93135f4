"""The original's training loss on dense logits."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from fusion_core.losses import raise_lm_weight
from fusion_core.reference.targets import Targets, choose_targets, mix_targets, reward
from fusion_core.spec import Spec


@dataclass(frozen=True)
class Batch:
    """A padded batch as the original's collator leaves it.

    labels: the input ids, not shifted; -100 where there is none. attention_mask: 1 for tokens, 0 for padding.
    targets: of the base model first, if it teaches, then of the sources, all in one dtype.
    cross_entropy: nats per token of each sequence for each of them, in that order.
    """

    labels: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]
    targets: tuple[Targets, ...]
    cross_entropy: Float[Tensor, "batch sources"]
    base_teaches: bool


class Objective(Spec):
    """The loss that the original trains on, as its arguments choose it."""

    combine: Literal["min_ce", "avg_ce"] = Field("min_ce", title="Combination", description="Of several teachers.")
    weighting: Literal["hard", "hard_and_decay", "soft"] = Field(
        "hard",
        title="Weighting",
        description="hard: lm_weight; hard_and_decay: rising to 1; soft: 1 - reward, for batches of one sequence.",
    )
    loss: Literal["ce", "kl"] = Field("ce", title="Loss", description="From the teacher's target to the student.")
    lm_weight: float = Field(0.9, ge=0, le=1, title="Weight of language modelling")

    def __call__(
        self, logits: Float[Tensor, "batch seq vocab"], batch: Batch, *, step: int = 0, max_steps: int = 1
    ) -> Tensor:
        """The differentiable loss, nats: a mean over labels and one over tokens, weighted.

        Row `i` of the logits is compared with target `i`, but with label `i + 1`. The student is never tempered.
        Rewards and mixtures are computed in the targets' dtype, the rest in the logits'.

        Raises ValueError for numbers of targets and rewards that differ, and for soft weighting of several sequences.
        """
        rewards = reward(batch.cross_entropy, batch.targets[0].probs.dtype)
        if self.combine == "min_ce":
            target = choose_targets(batch.targets, rewards, base_teaches=batch.base_teaches)
        else:
            target = mix_targets(batch.targets, rewards)
        to_text = cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
        rows = _distill(logits, target, self.loss)
        to_teacher = (rows * batch.attention_mask).sum() / batch.attention_mask.sum()
        if self.weighting == "soft":
            share = self._soft_share(rewards)
            return (1.0 - share) * to_text + share * to_teacher
        weight = self.lm_weight
        if self.weighting == "hard_and_decay":
            weight = raise_lm_weight(weight, step, max_steps)
        return weight * to_text + (1.0 - weight) * to_teacher

    def _soft_share(self, rewards: Float[Tensor, "batch sources"]) -> Float[Tensor, ""]:
        if len(rewards) != 1:
            raise ValueError(
                f"soft weighting: expected a batch of 1 sequence, found {len(rewards)}; the original refuses others too"
            )
        return rewards[0].max() if self.combine == "min_ce" else rewards.mean(1)[0]


def _distill(
    logits: Float[Tensor, "batch seq vocab"], target: Targets, loss: Literal["ce", "kl"]
) -> Float[Tensor, "batch seq"]:
    """Cross-entropy or KL divergence of each position; p log p is rounded to the target's dtype."""
    student = logits.gather(-1, target.ids) - logits.logsumexp(-1, keepdim=True)
    rows = -(target.probs * student).sum(-1)
    if loss == "kl":
        rows = rows + torch.xlogy(target.probs, target.probs).to(rows.dtype).sum(-1)
    return rows
