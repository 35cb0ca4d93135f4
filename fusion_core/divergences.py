"""Divergences between a sparse teacher and the student, each on the same few outcomes.

The outcomes of a row are the teacher's kept ids and one more, the *rest*: every other id together. With
teacher probabilities p (normalised over what is known) and student probabilities q (full softmax, the rest
being the complement of the kept ids), in nats:

| divergence       | tail="bucket"                                | tail="renormalise"               |
|------------------|----------------------------------------------|----------------------------------|
| SoftCrossEntropy | -sum p log q, rest included                  | the same, p / sum of kept p, no rest |
| ForwardKL        | sum p (log p - log q), rest included         | the same, p / sum of kept p, no rest |
| ReverseKL        | sum q (log q - log p), rest included         | refused: infinite off the kept ids |
| JSD(beta)        | beta KL(p, m) + (1 - beta) KL(q, m), rest included, m = beta p + (1 - beta) q | refused, the same |

How the teacher was extracted: `TopK` and `TopP` rows have a tail and go with every entry of the table. Rows
without a tail (one-hots, samples) have a rest of probability 0: both tails mean the same for the first
two divergences, and ReverseKL pays `LOG_FLOOR` for what the student puts there. "Refused" is a type: those
classes have no other tail to choose. ReferenceCrossEntropy and ReferenceKL, the original's, take rows `as_given`:
no rest, no scaling.

Merging ids into one outcome can only lower these divergences, so the bucket is a lower bound of the dense one.
"""

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from fusion_core.spec import Spec

LOG_FLOOR = -80.0
"""The least log-probability of an outcome under the student; also under the teacher where its log is taken
against the student's mass. exp(-80) is a normal fp32 number, so no gradient of a logarithm overflows."""

Tail = Literal["bucket", "renormalise"]
Averaged = Literal["labels", "tokens"]
_TAIL_HELP = (
    "What becomes of the mass that the teacher's kept candidates lack: one more outcome (bucket), or nothing, the"
    " candidates being scaled up to a sum of one (renormalise, the paper's)."
)
Logprobs = Float[Tensor, "rows outcomes"]


class _Divergence(Spec):
    """What the divergences share: how they are weighed against the labels."""

    averaged_over: ClassVar[Averaged] = "labels"  # which rows count, and by whose number their sum is divided

    def weigh_labels(
        self, is_label: Bool[Tensor, "rows"], known: Float[Tensor, "rows"], lm_weight: float
    ) -> Float[Tensor, "rows"]:
        """What the labels' nll count where that much of the teacher is known; 0 for rows without a label."""
        return is_label.to(known.dtype) - (1 - lm_weight) * known.masked_fill(~is_label, 0.0)


class SoftCrossEntropy(_Divergence):
    """The student's cross-entropy under the teacher; its gradient is ForwardKL's."""

    kind: Literal["soft_cross_entropy"] = "soft_cross_entropy"
    tail: Tail = Field(default="bucket", title="Tail", description=_TAIL_HELP)

    def __call__(self, teacher: Logprobs, student: Logprobs) -> Float[Tensor, "rows"]:
        """Nats per row. Both arguments: natural logs over the same outcomes; the student's are finite."""
        return _expect(teacher, -student)


class ForwardKL(_Divergence):
    """KL(teacher, student): cross-entropy less the teacher's own entropy; 0 for equals."""

    kind: Literal["forward_kl"] = "forward_kl"
    tail: Tail = Field(default="bucket", title="Tail", description=_TAIL_HELP)

    def __call__(self, teacher: Logprobs, student: Logprobs) -> Float[Tensor, "rows"]:
        """Nats per row. Both arguments: natural logs over the same outcomes; the student's are finite."""
        return _expect(teacher, teacher - student)


class ReverseKL(_Divergence):
    """KL(student, teacher): the student leaves out what it can't match (Gu et al. 2024, MiniLLM)."""

    kind: Literal["reverse_kl"] = "reverse_kl"
    tail: ClassVar[Tail] = "bucket"

    def __call__(self, teacher: Logprobs, student: Logprobs) -> Float[Tensor, "rows"]:
        """Nats per row. Both arguments: natural logs over the same outcomes; the student's are finite."""
        return _expect(student, student - teacher.clamp(min=LOG_FLOOR))


class JSD(_Divergence):
    """The generalised Jensen-Shannon divergence, at most ln 2 (Agarwal et al. 2024, GKD, equation 1)."""

    kind: Literal["jsd"] = "jsd"
    beta: float = Field(
        0.5,
        gt=0,
        lt=1,
        title="Teacher's share",
        description="Share of the teacher in the mixture both are held against.",
    )
    tail: ClassVar[Tail] = "bucket"

    def __call__(self, teacher: Logprobs, student: Logprobs) -> Float[Tensor, "rows"]:
        """Nats per row. Both arguments: natural logs over the same outcomes; the student's are finite."""
        shares = student.new_tensor([self.beta, 1 - self.beta]).log()
        mixture = torch.logaddexp(teacher + shares[0], student + shares[1])
        return self.beta * _expect(teacher, teacher - mixture) + (1 - self.beta) * _expect(student, student - mixture)


class _Reference(_Divergence):
    """What the original's two losses share: targets in bf16, which are taken as they are, though rounding keeps
    them from a sum of one, and a mean over all tokens, the last of a sequence included."""

    tail: ClassVar[Literal["as_given"]] = "as_given"
    averaged_over: ClassVar[Averaged] = "tokens"

    def weigh_labels(
        self, is_label: Bool[Tensor, "rows"], known: Float[Tensor, "rows"], lm_weight: float
    ) -> Float[Tensor, "rows"]:
        """The same, what isn't known being rounded to bf16, as 1 - reward is."""
        unknown = (1 - known.bfloat16()).to(known.dtype)
        return is_label * (lm_weight + (1 - lm_weight) * unknown)


class ReferenceCrossEntropy(_Reference):
    """The student's cross-entropy under the original's bf16 target; pair it with the reference fusion strategies."""

    kind: Literal["reference_cross_entropy"] = "reference_cross_entropy"

    def __call__(self, teacher: Logprobs, student: Logprobs) -> Float[Tensor, "rows"]:
        """Nats per row. Both arguments: natural logs over the same outcomes; the student's are finite."""
        return -(teacher.exp().bfloat16() * student).sum(-1)


class ReferenceKL(_Reference):
    """KL of the original's bf16 target from the student, p log p rounded to bf16."""

    kind: Literal["reference_kl"] = "reference_kl"

    def __call__(self, teacher: Logprobs, student: Logprobs) -> Float[Tensor, "rows"]:
        """Nats per row. Both arguments: natural logs over the same outcomes; the student's are finite."""
        probs = teacher.exp().bfloat16()
        return torch.xlogy(probs, probs).to(student.dtype).sum(-1) - (probs * student).sum(-1)


Divergence = Annotated[
    SoftCrossEntropy | ForwardKL | ReverseKL | JSD | ReferenceCrossEntropy | ReferenceKL, Field(discriminator="kind")
]


def _expect(logprobs: Logprobs, values: Logprobs) -> Float[Tensor, "rows"]:
    """The mean of `values` under `logprobs`; an impossible outcome adds nothing, whatever its value."""
    return (logprobs.exp() * values.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)
