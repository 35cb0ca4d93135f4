"""The loss of a chunk of logits and its gradient, derived by hand so that nothing dense is kept.

With `g` the derivatives of a row's divergence in the student's log-probabilities of its outcomes (the
teacher's kept ids and the rest) and G their sum, the derivative in the logit of a kept id is g_v - q_v G, in
that of any other id r_j (g_rest - q_rest G), r being the softmax over the rest alone. So the complement of the
kept ids is a sum over the others, exact where it is tiny, and no quotient by it appears.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fusion_core.distributions import filled_slots, pad
from fusion_core.divergences import LOG_FLOOR, Divergence, Logprobs, Tail
from fusion_core.types import TokenDist

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Objective:
    """Everything that the loss depends on but the logits: labels and teacher, one row each per row of logits.

    lm_weight: the weight of the labels where the teacher is known altogether; see `fusion_core.losses`.
    teacher_scale: labels per row of a divergence that is averaged over tokens, since sums are divided by labels.
    """

    labels: Int[Tensor, "rows"]
    teacher: TokenDist
    divergence: Divergence
    lm_weight: float
    teacher_scale: float = 1.0

    def chunks(self, chunk_rows: int) -> Iterator[tuple[slice, "Objective"]]:
        """Every `chunk_rows` rows, and the objective of these rows alone."""
        for start in range(0, len(self.labels), chunk_rows):
            rows = slice(start, min(start + chunk_rows, len(self.labels)))
            teacher = self.teacher.rows(rows.start, rows.stop)
            yield rows, replace(self, labels=self.labels[rows], teacher=teacher)

    def score(self, logits: Float[Tensor, "rows vocab"], with_grad: bool) -> Float[Tensor, "parts"]:
        """Four sums over the rows: loss, nll, divergence times weight, weight; nats.

        The logits (contiguous, fp32 or float64) are overwritten: with the gradient of the loss sum if
        `with_grad`, otherwise with nothing of use.
        """
        is_label = self.labels != IGNORED_LABEL
        label = self.labels.clamp(min=0).unsqueeze(1)
        label_logit = logits.gather(1, label)
        kept, at = self._cut_kept(logits)

        # From here on `logits` holds the exponentials of the rest alone.
        peak = logits.amax(1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
        rest_sum = logits.sub_(peak).exp_().sum(1, keepdim=True)
        outcomes = torch.cat([kept, peak + rest_sum.log()], 1)
        top = outcomes.amax(1, keepdim=True)  # taken off first, so that large logits cost no digits
        outcomes, label_logit = outcomes - top, label_logit - top
        log_normalizer = outcomes.logsumexp(1, keepdim=True)
        student = (outcomes - log_normalizer).clamp(min=LOG_FLOOR)

        expected, known = _teacher_outcomes(self.teacher, self.divergence.tail, logits.dtype)
        divergence, slope = _differentiate(self.divergence, expected, student)
        nll = (log_normalizer - label_logit).squeeze(1).masked_fill(~is_label, 0.0)
        over_tokens = self.divergence.averaged_over == "tokens"
        weight = known * self.teacher_scale if over_tokens else known.masked_fill(~is_label, 0.0)
        to_teacher = (1 - self.lm_weight) * weight
        to_label = self.divergence.weigh_labels(is_label, known, self.lm_weight)
        if with_grad:
            slope = slope * to_teacher.unsqueeze(1)
            grads = slope + student.exp() * (to_label - slope.sum(1)).unsqueeze(1)
            logits.mul_(grads[:, -1:] / rest_sum.clamp(min=torch.finfo(logits.dtype).tiny))
            logits.view(-1)[at] = grads[:, :-1][filled_slots(self.teacher)]
            logits.scatter_add_(1, label, -to_label.unsqueeze(1))
        loss = to_label * nll + to_teacher * divergence
        return torch.stack([loss.sum(), nll.sum(), (weight * divergence).sum(), weight.sum()])

    def _cut_kept(self, logits: Float[Tensor, "rows vocab"]) -> tuple[Tensor, Tensor]:
        """The logits of the kept ids [rows, width] and their flat places, which are set to -inf."""
        at = self.teacher.row_of_entry * logits.shape[1] + self.teacher.ids
        flat = logits.view(-1)
        kept = pad(replace(self.teacher, logprobs=flat[at]))[1]
        flat[at] = -torch.inf
        return kept, at


def _teacher_outcomes(
    teacher: TokenDist, tail: Tail | Literal["as_given"], dtype: torch.dtype
) -> tuple[Logprobs, Float[Tensor, "rows"]]:
    """Log-probabilities of the kept ids and the rest, normalised over what is known, and each row's weight.

    The weight is 1 - unknown, or 0 for a row that has no outcome left; such a row is -inf throughout. As given, rows
    are divided by their weight alone, so that one without unknown mass is what it is, whatever its sum.
    """
    rest = teacher.tail_logprob.to(dtype).unsqueeze(1)
    if tail != "bucket":
        rest = torch.full_like(rest, -torch.inf)
    outcomes = torch.cat([pad(teacher)[1].to(dtype), rest], 1)
    log_known = outcomes.logsumexp(1, keepdim=True)
    empty = log_known == -torch.inf
    weight = -torch.expm1(teacher.unknown_logprob.to(dtype)).clamp(max=0.0)
    if tail == "as_given":
        log_known = weight.log().unsqueeze(1)
    log_known = log_known.masked_fill(log_known == -torch.inf, 0.0)  # as given, also where rounding left no weight
    return outcomes - log_known, weight.masked_fill(empty.squeeze(1), 0.0)


def _differentiate(divergence: Divergence, teacher: Logprobs, student: Logprobs) -> tuple[Tensor, Tensor]:
    """The rows' divergence, and its derivative in each of the student's log-probabilities."""
    with torch.enable_grad():
        student = student.detach().requires_grad_()
        rows = divergence(teacher, student)
        (slope,) = torch.autograd.grad(rows.sum(), student)
    return rows.detach(), slope
