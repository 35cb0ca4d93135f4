"""The loss of a chunk and its hand-made gradient against a dense float64 definition that autograd differentiates."""

import math

import pytest
import torch
from torch import Tensor

from fusion_core.distributions import TopK
from fusion_core.divergences import (
    JSD,
    LOG_FLOOR,
    Divergence,
    ForwardKL,
    ReferenceCrossEntropy,
    ReferenceKL,
    ReverseKL,
    SoftCrossEntropy,
)
from fusion_core.objective import IGNORED_LABEL, Objective
from fusion_core.types import TokenDist

ROWS, VOCAB = 24, 30
DIVERGENCES: list[Divergence] = [
    SoftCrossEntropy(),
    SoftCrossEntropy(tail="renormalise"),
    ForwardKL(),
    ForwardKL(tail="renormalise"),
    ReverseKL(),
    JSD(beta=0.3),
]


def draw_teacher(rows: int = ROWS, vocab: int = VOCAB, seed: int = 0) -> TokenDist:
    """Ragged rows of every sort: kept, tail and unknown, some without one of them, some absent."""
    generator = torch.Generator().manual_seed(seed)
    kept, widths, rest = [], [], []
    for row in range(rows):
        width = 0 if row % 6 == 5 else int(torch.randint(1, 6, (), generator=generator))
        masses = torch.rand(width + 2, generator=generator, dtype=torch.float64)
        masses[-2] *= row % 4 != 3
        masses[-1] *= row % 3 != 2
        if row % 12 == 11:
            masses = torch.tensor([0.0, 1.0], dtype=torch.float64)
        masses /= masses.sum()
        ids = torch.randperm(vocab, generator=generator)[:width]
        kept.append((ids, masses[:-2].log()))
        widths.append(width)
        rest.append(masses[-2:].log())
    return TokenDist(
        row_offsets=torch.tensor([0, *widths]).cumsum(0),
        ids=torch.cat([ids for ids, _ in kept]),
        logprobs=torch.cat([logprobs for _, logprobs in kept]),
        tail_logprob=torch.stack(rest)[:, 0],
        unknown_logprob=torch.stack(rest)[:, 1],
        vocab_size=vocab,
    )


def define_divergence(divergence: Divergence, p: Tensor, q: Tensor) -> Tensor:
    log_p, log_q = p.clamp(min=math.exp(LOG_FLOOR)).log(), q.clamp(min=math.exp(LOG_FLOOR)).log()
    match divergence:
        case SoftCrossEntropy():
            return -(p * log_q).sum()
        case ForwardKL():
            return (p * (log_p - log_q)).sum()
        case ReverseKL():
            return (q * (log_q - log_p)).sum()
        case JSD(beta=beta):
            m = beta * p + (1 - beta) * q
            return beta * (p * (log_p - m.log())).sum() + (1 - beta) * (q * (log_q - m.log())).sum()


def define_loss(logits: Tensor, labels: Tensor, teacher: TokenDist, lm_weight: float, divergence: Divergence) -> Tensor:
    total = logits.new_zeros(())
    for row in range(len(labels)):
        if labels[row] == IGNORED_LABEL:
            continue
        one = teacher.rows(row, row + 1)
        q = logits[row].softmax(0)
        rest = torch.ones(len(q), dtype=torch.bool)
        rest[one.ids] = False
        tail = one.tail_logprob.exp() * (divergence.tail == "bucket")
        p = torch.cat([one.logprobs.exp(), tail])
        nll = -q[labels[row]].log()
        weight = 1 - one.unknown_logprob.exp().item() if p.sum() > 0 else 0.0
        loss = nll
        if weight > 0:
            outcomes = torch.cat([q[one.ids], q[rest].sum().view(1)])
            distill = (1 - lm_weight) * weight
            loss = (1 - distill) * nll + distill * define_divergence(divergence, p / p.sum(), outcomes)
        total = total + loss
    return total


def score(objective: Objective, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The loss sum and its gradient in the logits."""
    gradient = logits.detach().clone()
    sums = objective.score(gradient, with_grad=True)
    return sums[0], gradient


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("lm_weight", [0.9, 0.3, 0.0, 1.0])
def test_loss_and_gradient_are_those_of_the_dense_definition(divergence: Divergence, lm_weight: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(ROWS, VOCAB, generator=generator, dtype=torch.float64) * 3).requires_grad_()
    labels = torch.randint(VOCAB, (ROWS,), generator=generator)
    labels[::7] = IGNORED_LABEL
    expected = define_loss(logits, labels, draw_teacher(), lm_weight, divergence)
    reference = torch.autograd.grad(expected, logits)[0]
    loss, gradient = score(Objective(labels, draw_teacher(), divergence, lm_weight), logits)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("gap", [15.0, 30.0, 70.0])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_the_complement_is_exact_where_fp32_rounds_the_kept_sum_to_one(divergence: Divergence, gap: float) -> None:
    logits = torch.zeros(1, 6)
    logits[0, :2] = torch.tensor([gap, gap - 1])
    teacher = TokenDist(
        row_offsets=torch.tensor([0, 2]),
        ids=torch.tensor([0, 1]),
        logprobs=torch.tensor([0.5, 0.3]).log(),
        tail_logprob=torch.tensor([0.2]).log(),
        unknown_logprob=torch.tensor([-math.inf]),
        vocab_size=6,
    )
    labels = torch.tensor([1])
    exact = logits.double().requires_grad_()
    expected = define_loss(exact, labels, teacher, 0.0, divergence)
    loss, gradient = score(Objective(labels, teacher, divergence, 0.0), logits)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(expected, exact)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_gradients_stay_finite_when_the_student_is_certain(divergence: Divergence) -> None:
    logits = torch.zeros(2, 6)
    logits[0, 0], logits[1, 3] = 1e4, 1e4
    teacher = TopK(k=2)(torch.arange(12.0).view(2, 6), 6)
    loss, gradient = score(Objective(torch.tensor([2, 3]), teacher, divergence, 0.9), logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_kept_ids_of_the_whole_vocabulary_leave_no_rest_and_no_nan(divergence: Divergence) -> None:
    generator = torch.Generator().manual_seed(2)
    logits, labels = torch.randn(ROWS, VOCAB, generator=generator), torch.zeros(ROWS, dtype=torch.int64)
    teacher = TopK(k=VOCAB)(torch.randn(ROWS, VOCAB, generator=generator), VOCAB)
    loss, gradient = score(Objective(labels, teacher, divergence, 0.5), logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient.sum(1).abs().max() < 1e-5


def test_without_gradient_the_sums_are_the_same() -> None:
    logits, labels = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(3)), torch.zeros(ROWS).long()
    objective = Objective(labels, draw_teacher(), SoftCrossEntropy(), 0.5)
    assert torch.equal(objective.score(logits.clone(), with_grad=True), objective.score(logits, with_grad=False))


@pytest.mark.parametrize("divergence", [*DIVERGENCES, ReferenceCrossEntropy(), ReferenceKL()], ids=repr)
def test_a_row_whose_known_mass_rounds_to_none_counts_as_absent(divergence: Divergence) -> None:
    """Storage in fp16 makes an unknown mass of 1 - 1e-8 a whole one, and still has the log of what was kept."""
    labels, nothing = torch.zeros(1, dtype=torch.int64), torch.full((1,), -torch.inf)
    found = []
    for kept in (torch.tensor([-18.4]), torch.empty(0)):
        offsets = torch.tensor([0, len(kept)])
        teacher = TokenDist(offsets, torch.ones_like(kept, dtype=torch.int64), kept, nothing, torch.zeros(1), VOCAB)
        logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        parts = Objective(labels, teacher, divergence, lm_weight=0.3).score(logits, with_grad=True)
        found.append(torch.cat([parts, logits.flatten()]))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-15)
