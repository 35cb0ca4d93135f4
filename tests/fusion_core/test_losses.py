"""The objective and its gradients of whole batches: chunks, heads, dtypes, labels, and against the library."""

import math

import jaxtyping
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fusion_core.distributions import TopK, TopP, absent_rows, concatenate, mix, take_rows
from fusion_core.divergences import JSD, Divergence, ForwardKL, ReverseKL, SoftCrossEntropy
from fusion_core.losses import (
    FusionLoss,
    fusion_loss,
    fusion_loss_from_logits,
    raise_lm_weight,
)
from fusion_core.objective import IGNORED_LABEL, Objective
from fusion_core.types import TokenDist

ROWS, HIDDEN, VOCAB = 24, 8, 30
DIVERGENCES: list[Divergence] = [
    SoftCrossEntropy(),
    SoftCrossEntropy(tail="renormalise"),
    ForwardKL(),
    ForwardKL(tail="renormalise"),
    ReverseKL(),
    JSD(beta=0.3),
]


def draw_teacher(rows: int = ROWS, vocab: int = VOCAB) -> TokenDist:
    """Ragged rows with a tail and some unknown mass, every sixth absent."""
    dist = TopP(p=0.7)(torch.randn(rows, vocab, generator=torch.Generator().manual_seed(7)) * 3, vocab)
    partly = mix([dist, absent_rows(rows, vocab)], torch.tensor([[0.8], [0.2]]).expand(2, rows))
    index = torch.arange(rows)
    index[5::6] = -1
    return take_rows(partly, index)


def draw_student(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in [(ROWS, HIDDEN), (VOCAB, HIDDEN), (VOCAB,)]
    )
    labels = torch.randint(VOCAB, (ROWS,), generator=generator)
    labels[::7] = IGNORED_LABEL
    return hidden, weight, bias, labels


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("chunk_rows", [None, 1, 5, ROWS])
def test_a_chunked_head_has_the_loss_and_gradients_of_its_logits(
    divergence: Divergence, chunk_rows: int | None
) -> None:
    hidden, weight, bias, labels = draw_student()
    teacher = draw_teacher()
    objective = Objective(labels, teacher, divergence, lm_weight=0.3)
    logits = hidden @ weight.T + bias
    gradient = logits.detach().clone()
    expected = objective.score(gradient, with_grad=True)[0] / (labels != IGNORED_LABEL).sum()
    references = torch.autograd.grad(logits, [logits, hidden, weight, bias], gradient / (labels != IGNORED_LABEL).sum())

    options = {"lm_weight": 0.3, "divergence": divergence, "chunk_rows": chunk_rows}
    from_head = fusion_loss(hidden, weight, labels, teacher, head_bias=bias, **options).loss
    dense = logits.detach().requires_grad_()
    from_logits = fusion_loss_from_logits(dense, labels, teacher, **options).loss
    found = [*torch.autograd.grad(from_logits, dense), *torch.autograd.grad(from_head, [hidden, weight, bias])]

    assert from_head.item() == pytest.approx(expected.item(), rel=1e-12)
    assert from_logits.item() == pytest.approx(expected.item(), rel=1e-12)
    for one, reference in zip(found, references, strict=True):
        torch.testing.assert_close(one, reference, rtol=1e-10, atol=1e-13)


def test_chunks_by_default_have_the_loss_and_gradients_of_dense_float64_logits() -> None:
    rows, vocab = 520, 33_000  # two chunks by default
    generator = torch.Generator().manual_seed(4)
    hidden, weight = (torch.randn(n, 4, generator=generator, requires_grad=True) for n in (rows, vocab))
    labels = torch.randint(vocab, (rows,), generator=generator)
    dist = TopK(k=5)(torch.randn(rows, vocab, generator=generator) * 3, vocab)
    found = fusion_loss(hidden, weight, labels, dist, lm_weight=0.3)

    logprobs = (hidden.double() @ weight.double().T).log_softmax(1)
    kept = logprobs.gather(1, dist.ids.view(rows, 5))
    mass = dist.logprobs.view(rows, 5).double().exp()
    others = (1 - kept.exp().sum(1)).log()
    divergence = -(mass * kept).sum(1) - dist.tail_logprob.double().exp() * others
    expected = (0.3 * functional.nll_loss(logprobs, labels, reduction="none") + 0.7 * divergence).mean()
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    inputs = [hidden, weight]
    for one, reference in zip(
        torch.autograd.grad(found.loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(one, reference, rtol=1e-4, atol=1e-6 * float(reference.abs().max()))


def full_teacher() -> TokenDist:
    return TopK(k=VOCAB)(torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(9)), VOCAB)


def test_a_full_teacher_is_the_librarys_soft_cross_entropy() -> None:
    hidden, weight, _, labels = draw_student()
    teacher = full_teacher()
    probs = torch.zeros(ROWS, VOCAB, dtype=torch.float64)
    probs[teacher.row_of_entry, teacher.ids] = teacher.logprobs.double().exp()
    logits = (hidden @ weight.T).detach()
    expected = functional.cross_entropy(logits[labels >= 0], probs[labels >= 0])
    found = fusion_loss(hidden, weight, labels, teacher, lm_weight=0.0)
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_with_full_coverage_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    hidden, weight, _, labels = draw_student()
    found = fusion_loss(hidden, weight, labels, full_teacher(), lm_weight=0.7)
    assert found.covered.item() == 1.0
    assert found.loss.item() == pytest.approx(0.7 * found.clm.item() + 0.3 * found.divergence.item(), rel=1e-12)


def test_absent_rows_are_cross_entropy_alone_whatever_the_weight() -> None:
    hidden, weight, _, labels = draw_student()
    expected = functional.cross_entropy(hidden @ weight.T, labels)
    found = fusion_loss(hidden, weight, labels, absent_rows(ROWS, VOCAB), lm_weight=0.1)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(torch.autograd.grad(found.loss, weight), torch.autograd.grad(expected, weight))
    assert found.divergence.item() == found.covered.item() == 0.0


def test_soft_cross_entropy_and_forward_kl_differ_by_a_constant() -> None:
    _, _, _, labels = draw_student()
    gradients = []
    for divergence in (SoftCrossEntropy(), ForwardKL()):
        hidden, weight, _, _ = draw_student()
        loss = fusion_loss(hidden, weight, labels, draw_teacher(), lm_weight=0.2, divergence=divergence).loss
        gradients.append(torch.autograd.grad(loss, hidden)[0])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), JSD()], ids=repr)
def test_a_student_is_at_rest_at_its_teacher(divergence: Divergence) -> None:
    hidden, weight, _, labels = draw_student()
    logits = (hidden @ weight.T).detach().requires_grad_()
    teacher = TopK(k=4)(logits.detach(), VOCAB)
    found = fusion_loss_from_logits(logits, labels, teacher, lm_weight=0.0, divergence=divergence)
    assert abs(found.loss.item()) < 1e-6
    assert torch.autograd.grad(found.loss, logits)[0].abs().max() < 1e-6


def test_renormalising_ignores_the_tail() -> None:
    hidden, weight, _, labels = draw_student()
    teacher = TopK(k=4)(torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(1)), VOCAB)
    bare = TokenDist(**{**vars(teacher), "tail_logprob": torch.full((ROWS,), -math.inf)})
    divergence = ForwardKL(tail="renormalise")
    losses = [fusion_loss(hidden, weight, labels, rows, divergence=divergence).loss for rows in (teacher, bare)]
    assert losses[0].item() == losses[1].item()
    assert fusion_loss(hidden, weight, labels, teacher, divergence=ForwardKL()).loss != losses[0]


def test_the_order_of_entries_and_rows_does_not_matter() -> None:
    hidden, weight, _, labels = draw_student()
    teacher, order = draw_teacher(), torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))
    whole = fusion_loss(hidden, weight, labels, teacher).loss
    shuffled = fusion_loss(hidden[order], weight, labels[order], take_rows(teacher, order)).loss
    assert shuffled.item() == pytest.approx(whole.item(), rel=1e-12)


def test_calls_with_a_common_number_of_labels_add_up_to_the_whole() -> None:
    hidden, weight, _, labels = draw_student()
    teacher = draw_teacher()
    whole = fusion_loss(hidden, weight, labels, teacher)
    number = int((labels >= 0).sum())
    parts = [
        fusion_loss(hidden[a:b], weight, labels[a:b], teacher.rows(a, b), num_labels=number)
        for a, b in [(0, 5), (5, ROWS)]
    ]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-12)
    assert sum(part.clm.item() for part in parts) == pytest.approx(whole.clm.item(), rel=1e-12)
    gradient = sum(torch.autograd.grad(part.loss, weight)[0] for part in parts)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole.loss, weight)[0])


def test_without_labels_or_rows_loss_and_gradient_are_zero() -> None:
    hidden, weight, _, _ = draw_student()
    for rows in (ROWS, 0):
        labels = torch.full((rows,), IGNORED_LABEL)
        found = fusion_loss(hidden[:rows], weight, labels, draw_teacher().rows(0, rows))
        assert found.loss.item() == found.clm.item() == found.divergence.item() == 0.0
        assert torch.autograd.grad(found.loss, weight)[0].abs().max() == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_lower_precision_stays_near_float64(dtype: torch.dtype, tolerance: float) -> None:
    results: list[tuple[FusionLoss, tuple[Tensor, ...]]] = []
    for precision in (torch.float64, dtype):
        hidden, weight, bias, labels = draw_student(dtype=precision)
        found = fusion_loss(hidden, weight, labels, draw_teacher(), head_bias=bias, lm_weight=0.5, chunk_rows=7)
        gradients = torch.autograd.grad(found.loss, [hidden, weight, bias])
        assert {gradient.dtype for gradient in gradients} == {precision}
        results.append((found, gradients))
    (exact, exact_gradients), (rough, rough_gradients) = results
    assert rough.loss.item() == pytest.approx(exact.loss.item(), rel=tolerance)
    for gradient, reference in zip(rough_gradients, exact_gradients, strict=True):
        assert (gradient.double() - reference).norm() <= tolerance * reference.norm()


def test_many_labels_do_not_round_fp16_gradients_to_zero() -> None:
    hidden, weight, _, labels = draw_student(dtype=torch.float16)
    loss = fusion_loss(hidden, weight, labels, draw_teacher(), num_labels=10**7).loss
    gradient = torch.autograd.grad(loss * 1e4, hidden)[0]
    assert (gradient != 0).float().mean() > 0.8


def test_a_head_of_another_dtype_keeps_its_own_gradients() -> None:
    hidden, weight, _, labels = draw_student(dtype=torch.bfloat16)
    master = weight.detach().float().requires_grad_()
    loss = fusion_loss(hidden, master, labels, draw_teacher()).loss
    of_hidden, of_head = torch.autograd.grad(loss, [hidden, master])
    assert (of_hidden.dtype, of_head.dtype) == (torch.bfloat16, torch.float32)


def test_autocast_multiplies_in_its_own_dtype() -> None:
    hidden, weight, _, labels = draw_student(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fusion_loss(hidden, weight, labels, draw_teacher()).loss
    rounded = fusion_loss(hidden.bfloat16(), weight, labels, draw_teacher()).loss
    assert loss.item() == rounded.item()
    assert torch.autograd.grad(loss, hidden)[0].dtype == torch.float32


def test_the_same_call_gives_the_same_bits() -> None:
    bits = []
    for _ in range(2):
        hidden, weight, _, labels = draw_student(dtype=torch.float32)
        loss = fusion_loss(hidden, weight, labels, draw_teacher(), chunk_rows=5).loss
        bits.append((loss, *torch.autograd.grad(loss, [hidden, weight])))
    assert all(torch.equal(a, b) for a, b in zip(*bits, strict=True))


def test_without_gradients_the_loss_is_the_same() -> None:
    hidden, weight, _, labels = draw_student()
    with_gradient = fusion_loss(hidden, weight, labels, draw_teacher()).loss
    with torch.no_grad():
        without = fusion_loss(hidden, weight, labels, draw_teacher()).loss
    assert without.item() == with_gradient.item()
    assert not without.requires_grad


def test_a_second_backward_pass_is_refused() -> None:
    hidden, weight, _, labels = draw_student()
    loss = fusion_loss(hidden, weight, labels, draw_teacher()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()


def test_logits_are_left_as_they_were() -> None:
    logits = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = logits.detach().clone()
    fusion_loss_from_logits(logits, draw_student()[3], draw_teacher()).loss.backward()
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(ROWS - 1, dtype=torch.int64)}, f"{ROWS} labels"),
        ({"teacher": draw_teacher(ROWS - 1)}, f"{ROWS - 1} teacher rows"),
        ({"teacher": draw_teacher(vocab=VOCAB + 20)}, f"score {VOCAB} tokens but the teacher is over {VOCAB + 20}"),
        ({"labels": torch.full((ROWS,), VOCAB)}, rf"0\.\.{VOCAB - 1}"),
        ({"labels": torch.full((ROWS,), -1)}, "-1"),
        ({"lm_weight": 1.5}, "1.5"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    hidden, weight, _, labels = draw_student()
    with pytest.raises(ValueError, match=message):
        fusion_loss(**{"hidden": hidden, "head_weight": weight, "labels": labels, "teacher": draw_teacher(), **change})


def test_training_on_a_teacher_finds_it() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(4, VOCAB, generator=generator) * 2
    teacher, labels = TopK(k=VOCAB)(truth, VOCAB), torch.zeros(4, dtype=torch.int64)
    weight = torch.zeros(VOCAB, 4, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        found = fusion_loss(torch.eye(4), weight, labels, teacher, lm_weight=0.0, divergence=ForwardKL())
        found.loss.backward()
        optimizer.step()
    assert found.loss.item() < 1e-3


def test_lm_weight_rises_to_one_and_stays_there() -> None:
    assert [raise_lm_weight(0.6, step, 10) for step in (0, 5, 10, 20)] == pytest.approx([0.6, 0.8, 1.0, 1.0])
    assert raise_lm_weight(0.6, 0, 0) == 0.6


def test_a_teacher_may_be_joined_from_shards() -> None:
    hidden, weight, _, labels = draw_student()
    teacher = draw_teacher()
    joined = concatenate([teacher.rows(0, 10), teacher.rows(10, ROWS)])
    assert fusion_loss(hidden, weight, labels, joined).loss == fusion_loss(hidden, weight, labels, teacher).loss
