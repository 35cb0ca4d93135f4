"""What training on a mixture of truncated teachers is, in terms of the losses of its parts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fusion_core.distributions import TopK, mix
from fusion_core.losses import fusion_loss
from fusion_core.types import TokenDist

ROWS, VOCAB, KEPT, SHARES, LM_WEIGHT = 24, 30, 4, (0.7, 0.3), 0.2


def draw_student() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (ROWS, VOCAB))
    labels = torch.randint(VOCAB, (ROWS,), generator=generator)
    labels[::7] = -100
    return hidden, weight, labels


def draw_teacher(seed: int) -> TokenDist:
    return TopK(k=KEPT)(torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(seed)), VOCAB)


def mix_by_shares(teachers: list[TokenDist]) -> TokenDist:
    return mix(teachers, torch.tensor(SHARES).unsqueeze(1).expand(2, ROWS))


def test_the_loss_of_a_mixture_is_the_weighted_sum_where_all_teachers_keep_the_same_ids() -> None:
    hidden, weight, labels = draw_student()
    first = draw_teacher(seed=1)
    flatter = torch.cat([first.logprobs.view(ROWS, KEPT), first.tail_logprob.unsqueeze(1)], 1).mul(0.5).log_softmax(1)
    second = replace(first, logprobs=flatter[:, :KEPT].flatten(), tail_logprob=flatter[:, KEPT])
    teachers = (first, second, mix_by_shares([first, second]))
    losses = [fusion_loss(hidden, weight, labels, teacher, lm_weight=LM_WEIGHT).loss.item() for teacher in teachers]
    assert losses[2] == pytest.approx(SHARES[0] * losses[0] + SHARES[1] * losses[1], rel=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-2


def test_the_loss_of_a_mixture_otherwise_gives_the_labels_the_weight_of_the_tails() -> None:
    hidden, weight, labels = draw_student()
    teachers = [draw_teacher(seed) for seed in (1, 2)]
    kept = [teacher.ids.view(ROWS, KEPT) for teacher in teachers]
    assert (kept[0].sort(1).values != kept[1].sort(1).values).any(1).all()
    found = fusion_loss(hidden, weight, labels, mix_by_shares(teachers), lm_weight=LM_WEIGHT).loss.item()

    logprobs = (hidden @ weight.T).log_softmax(1)
    nll = functional.nll_loss(logprobs, labels, reduction="none")
    expected = 0.0
    for share, teacher, ids in zip(SHARES, teachers, kept, strict=True):
        whole = fusion_loss(hidden, weight, labels, teacher, lm_weight=LM_WEIGHT).loss.item()
        others = (1 - logprobs.gather(1, ids).exp().sum(1)).log()
        to_label = teacher.tail_logprob.double().exp() * (nll + others)  # instead of -others, the tail's term
        expected += share * (whole + (1 - LM_WEIGHT) * to_label[labels >= 0].mean().item())
    assert found == pytest.approx(expected, rel=1e-6)
