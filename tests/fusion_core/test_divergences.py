"""The divergences on a few outcomes, each held against its formula and against torch's own."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.nn import functional

from fusion_core.divergences import JSD, LOG_FLOOR, Divergence, ForwardKL, ReverseKL, SoftCrossEntropy

ALL: list[Divergence] = [SoftCrossEntropy(), ForwardKL(), ReverseKL(), JSD(), JSD(beta=0.1)]
DISTANCES = ALL[1:]


def draw(seed: int, rows: int = 20, outcomes: int = 6) -> torch.Tensor:
    logits = torch.randn(rows, outcomes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    return logits.log_softmax(1)


def define(divergence: Divergence, p: list[float], q: list[float]) -> float:
    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True) if x > 0)

    match divergence:
        case SoftCrossEntropy():
            return -sum(x * math.log(y) for x, y in zip(p, q, strict=True) if x > 0)
        case ForwardKL():
            return kl(p, q)
        case ReverseKL():
            return kl(q, p)
        case JSD(beta=beta):
            m = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
            return beta * kl(p, m) + (1 - beta) * kl(q, m)


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_divergence_is_its_formula(divergence: Divergence) -> None:
    teacher, student = draw(0), draw(1)
    expected = [define(divergence, p, q) for p, q in zip(teacher.exp().tolist(), student.exp().tolist(), strict=True)]
    assert divergence(teacher, student).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("divergence", [SoftCrossEntropy(), ForwardKL(), JSD()], ids=repr)
def test_impossible_outcomes_of_the_teacher_follow_the_formula_too(divergence: Divergence) -> None:
    teacher = torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64).log()
    student = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64).log().requires_grad_()
    loss = divergence(teacher, student)
    assert loss.item() == pytest.approx(define(divergence, [0.25, 0.75, 0.0], [0.5, 0.2, 0.3]), rel=1e-12)
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("divergence", DISTANCES, ids=repr)
def test_equals_have_no_distance_and_others_have_some(divergence: Divergence) -> None:
    teacher, student = draw(0), draw(1)
    assert divergence(teacher, teacher).abs().max() < 1e-14
    assert divergence(teacher, student).min() > 0


def test_divergences_are_those_of_torch() -> None:
    teacher, student = draw(0), draw(1)
    forward = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    reverse = functional.kl_div(teacher, student, reduction="none", log_target=True).sum(1)
    cross = functional.cross_entropy(student, teacher.exp(), reduction="none")
    assert torch.allclose(ForwardKL()(teacher, student), forward, rtol=1e-12)
    assert torch.allclose(ReverseKL()(teacher, student), reverse, rtol=1e-12)
    assert torch.allclose(SoftCrossEntropy()(teacher, student), cross, rtol=1e-12)


def test_jsd_is_bounded_and_symmetric_at_one_half() -> None:
    teacher, student = draw(0) * 1.0, draw(1)
    assert torch.allclose(JSD()(teacher, student), JSD()(student, teacher), rtol=1e-12)
    apart = JSD()(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[LOG_FLOOR, 0.0]]))
    assert apart.item() == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("divergence", DISTANCES, ids=repr)
def test_merging_outcomes_never_raises_a_divergence(divergence: Divergence) -> None:
    teacher, student = draw(0, outcomes=9), draw(1, outcomes=9)

    def merge(logprobs: torch.Tensor) -> torch.Tensor:
        return torch.cat([logprobs[:, :3], logprobs[:, 3:].logsumexp(1, keepdim=True)], 1)

    merged = divergence(merge(teacher), merge(student))
    assert (merged <= divergence(teacher, student) + 1e-12).all()


def test_reverse_kl_pays_the_floor_for_what_the_teacher_excludes() -> None:
    loss = ReverseKL()(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.5, 0.5]]).log())
    assert loss.item() == pytest.approx(math.log(0.5) - 0.5 * LOG_FLOOR, rel=1e-6)


def test_combinations_that_are_not_defined_cannot_be_written() -> None:
    adapter: TypeAdapter[Divergence] = TypeAdapter(Divergence)
    assert adapter.validate_python({"kind": "forward_kl", "tail": "renormalise"}) == ForwardKL(tail="renormalise")
    for kind in ("reverse_kl", "jsd"):
        with pytest.raises(ValidationError, match="tail"):
            adapter.validate_python({"kind": kind, "tail": "renormalise"})
    with pytest.raises(ValidationError, match="beta"):
        adapter.validate_python({"kind": "jsd", "beta": 1.0})
