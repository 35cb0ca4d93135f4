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
classes have no other tail to choose.

Merging ids into one outcome can only lower these divergences, so the bucket is a lower bound of the dense one.
"""

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fusion_core.spec import Spec

LOG_FLOOR = -80.0
"""The least log-probability of an outcome under the student; also under the teacher where its log is taken
against the student's mass. exp(-80) is a normal fp32 number, so no gradient of a logarithm overflows."""

Tail = Literal["bucket", "renormalise"]
_TAIL_HELP = (
    "What becomes of the mass that the teacher's kept candidates lack: one more outcome (bucket), or nothing, the"
    " candidates being scaled up to a sum of one (renormalise, the paper's)."
)
Logprobs = Float[Tensor, "rows outcomes"]


class SoftCrossEntropy(Spec):
    """The student's cross-entropy under the teacher; its gradient is ForwardKL's."""

    kind: Literal["soft_cross_entropy"] = "soft_cross_entropy"
    tail: Tail = Field(default="bucket", title="Tail", description=_TAIL_HELP)

    def __call__(self, teacher: Logprobs, student: Logprobs) -> Float[Tensor, "rows"]:
        """Nats per row. Both arguments: natural logs over the same outcomes; the student's are finite."""
        return _expect(teacher, -student)


class ForwardKL(Spec):
    """KL(teacher, student): cross-entropy less the teacher's own entropy; 0 for equals."""

    kind: Literal["forward_kl"] = "forward_kl"
    tail: Tail = Field(default="bucket", title="Tail", description=_TAIL_HELP)

    def __call__(self, teacher: Logprobs, student: Logprobs) -> Float[Tensor, "rows"]:
        """Nats per row. Both arguments: natural logs over the same outcomes; the student's are finite."""
        return _expect(teacher, teacher - student)


class ReverseKL(Spec):
    """KL(student, teacher): the student leaves out what it can't match (Gu et al. 2024, MiniLLM)."""

    kind: Literal["reverse_kl"] = "reverse_kl"
    tail: ClassVar[Tail] = "bucket"

    def __call__(self, teacher: Logprobs, student: Logprobs) -> Float[Tensor, "rows"]:
        """Nats per row. Both arguments: natural logs over the same outcomes; the student's are finite."""
        return _expect(student, student - teacher.clamp(min=LOG_FLOOR))


class JSD(Spec):
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


Divergence = Annotated[SoftCrossEntropy | ForwardKL | ReverseKL | JSD, Field(discriminator="kind")]


def _expect(logprobs: Logprobs, values: Logprobs) -> Float[Tensor, "rows"]:
    """The mean of `values` under `logprobs`; an impossible outcome adds nothing, whatever its value."""
    return (logprobs.exp() * values.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)
