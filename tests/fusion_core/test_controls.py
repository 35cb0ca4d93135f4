"""Controls: what they keep of the teacher they replace, and what they estimate."""

import math

import pytest
import torch
from pydantic import TypeAdapter

from fusion_core.controls import Control, Shuffled, Uniform, Unigram
from fusion_core.distributions import take_rows
from fusion_core.types import Fused, TokenDist, Tokens

VOCAB = 7


def teacher() -> tuple[Fused, Tokens]:
    """Six rows over two documents; row 3 is absent. Every row keeps another number of tokens."""
    probs = [[0.5], [0.25, 0.5], [0.1, 0.2, 0.3], [], [0.9], [0.4, 0.1]]
    flat = torch.tensor([p for row in probs for p in row])
    dist = TokenDist(
        row_offsets=torch.tensor([0, *[len(row) for row in probs]]).cumsum(0),
        ids=torch.tensor([i for row in probs for i in range(len(row))]),
        logprobs=flat.log(),
        tail_logprob=torch.tensor([1 - sum(row) if row else 0.0 for row in probs]).log(),
        unknown_logprob=torch.tensor([-math.inf, -math.inf, -math.inf, 0.0, -math.inf, -math.inf]),
        vocab_size=VOCAB,
    )
    tokens = Tokens(torch.tensor([0, 5, 5, 0, 5, 2]), torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 3, 6]))
    return Fused(dist, torch.tensor([0, 1, 0, -1, 1, 1])), tokens


@pytest.mark.parametrize("control", [Shuffled(), Uniform(candidates=3), Unigram(k=1), Unigram()])
def test_rows_are_filled_where_the_teacher_has_one_and_their_mass_is_one(control: Control) -> None:
    fused, tokens = teacher()
    made = control(fused, tokens)
    assert made.dist.present.tolist() == fused.dist.present.tolist()
    assert made.dist.vocab_size == VOCAB
    for row in range(made.dist.num_rows):
        one = made.dist.rows(row, row + 1)
        assert len(set(one.ids.tolist())) == len(one.ids)
        mass = float(one.logprobs.exp().sum() + one.tail_logprob.exp() + one.unknown_logprob.exp())
        assert mass == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("control", [Shuffled(seed=4), Uniform(seed=4, candidates=3)])
def test_the_seed_decides(control: Shuffled | Uniform) -> None:
    fused, tokens = teacher()
    again = control(fused, tokens).dist
    assert torch.equal(control(fused, tokens).dist.ids, again.ids)
    others = [control.model_copy(update={"seed": seed})(fused, tokens).dist.ids for seed in range(5, 12)]
    assert any(not torch.equal(other, again.ids) for other in others)


def test_shuffling_keeps_every_row_and_its_winner_somewhere() -> None:
    fused, tokens = teacher()
    made = Shuffled(seed=1)(fused, tokens)
    found = sorted((made.dist.rows(r, r + 1).logprobs.tolist(), int(made.winner[r])) for r in range(6))
    expected = sorted((fused.dist.rows(r, r + 1).logprobs.tolist(), int(fused.winner[r])) for r in range(6))
    assert found == expected
    assert made.winner[3] == -1


def test_uniform_draws_average_to_the_soft_cross_entropy_of_the_whole_vocabulary() -> None:
    fused, tokens = teacher()
    many = Fused(take_rows(fused.dist, torch.zeros(20_000, dtype=torch.int64)), torch.zeros(20_000, dtype=torch.int64))
    made = Uniform(candidates=3)(many, tokens).dist
    student = torch.tensor([0.05, 0.3, 0.05, 0.2, 0.1, 0.1, 0.2]).log()
    estimates = torch.zeros(20_000).index_add(0, made.row_of_entry, -made.logprobs.exp() * student[made.ids])
    exact = float(-student.mean())
    error = float(estimates.std()) / math.sqrt(20_000)
    assert float(estimates.mean()) == pytest.approx(exact, abs=4 * error)


def test_uniform_over_few_tokens_is_exact() -> None:
    fused, tokens = teacher()
    row = Uniform(candidates=100)(fused, tokens).dist.rows(0, 1)
    assert row.ids.tolist() == list(range(VOCAB))
    assert row.logprobs.exp().tolist() == pytest.approx([1 / VOCAB] * VOCAB)


def test_unigram_counts_labels_and_leaves_the_rest_to_the_tail() -> None:
    fused, tokens = teacher()  # labels: 5, 5 | 5, 2
    whole = Unigram()(fused, tokens).dist.rows(1, 2)
    assert whole.ids.tolist() == [5, 2]
    assert whole.logprobs.exp().tolist() == pytest.approx([0.75, 0.25])
    assert whole.tail_logprob.tolist() == [-math.inf]
    cut = Unigram(k=1)(fused, tokens).dist.rows(1, 2)
    assert cut.ids.tolist() == [5]
    assert cut.tail_logprob.exp().tolist() == pytest.approx([0.25])


def test_a_teacher_without_rows_stays_so() -> None:
    fused, tokens = teacher()
    absent = Fused(take_rows(fused.dist, torch.full((6,), -1)), torch.full((6,), -1))
    for control in (Shuffled(), Uniform(), Unigram()):
        assert not bool(control(absent, tokens).dist.present.any())


def test_controls_are_told_apart_by_their_kind() -> None:
    assert TypeAdapter(Control).validate_python({"kind": "unigram", "k": 5}) == Unigram(k=5)
