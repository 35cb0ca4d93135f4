"""Sampled rows: unbiased under every linear map of the ids, and the same however they are batched."""

import math

import jaxtyping
import pytest
import torch
from pydantic import TypeAdapter

from fusion_core.alignment import ByteBoundary, Pair
from fusion_core.distributions import ExtractionMode, Sampled, TopK, pad, reduce_logits
from fusion_core.distributions.draws import draw_ids, draw_uniforms
from fusion_core.types import Scored, TokenDist, Tokens, VocabMap
from fusion_core.vocabulary import Vocabulary

VOCAB = 40
ROWS = 20_000


def draw_logits(rows: int, columns: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2


def densify(dist: TokenDist) -> torch.Tensor:
    ids, logprobs = pad(dist)
    return torch.zeros(dist.num_rows, dist.vocab_size).scatter_add_(1, ids, logprobs.exp()).double()


def standard_errors(values: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """How many standard errors of independent draws the mean of the rows is off."""
    return (values.mean(0) - truth).abs() / (values.std(0) / math.sqrt(len(values))).clamp(min=1e-9)


@pytest.mark.parametrize("n", [1, 3, 12])
def test_each_id_is_drawn_with_exactly_its_probability(n: int) -> None:
    # A draw is a function of one uniform number; its mean over a fine grid of them is the integral within 1/grid.
    weights, grid = draw_logits(1).exp(), 50_000
    uniforms = ((torch.arange(grid, dtype=torch.float64) + 0.5) / grid).unsqueeze(1).expand(-1, n)
    drawn = draw_ids(weights.expand(grid, -1), uniforms)
    share = torch.bincount(drawn.flatten(), minlength=VOCAB).double() / drawn.numel()
    torch.testing.assert_close(share, (weights.double() / weights.double().sum())[0], atol=2 / grid, rtol=0)


def test_the_mean_under_any_linear_map_is_the_mapped_softmax_and_that_of_top_k_is_not() -> None:
    logits = draw_logits(1)
    truth = logits.double().softmax(1)
    linear = torch.randn(VOCAB, 15, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sampled = densify(Sampled(n=4)(logits.expand(ROWS, -1), VOCAB)) @ linear
    assert float(standard_errors(sampled, (truth @ linear)[0]).max()) < 4.5
    cut = densify(TopK(k=4)(logits, VOCAB))
    cut = cut / cut.sum(1, keepdim=True) @ linear
    assert float(((cut - truth @ linear).abs() / (sampled.std(0) / math.sqrt(ROWS))).max()) > 20


def test_the_mean_is_unbiased_through_alignment_and_a_many_to_one_map() -> None:
    rows = 4000
    logits = draw_logits(1)
    to = torch.randint(0, 9, (VOCAB,), generator=torch.Generator().manual_seed(2))
    letters = [bytes([97 + i]) for i in range(VOCAB)]
    source, target = Vocabulary(tuple(letters), {}, False, False), Vocabulary(tuple(letters[:9]), {}, False, False)
    tokens = Tokens(torch.zeros(rows, dtype=torch.int64), torch.arange(1, rows + 1), torch.tensor([0, rows]))
    dist = Sampled(n=4)(logits.expand(rows, -1), VOCAB)
    aligned = ByteBoundary()(Scored(tokens, dist, torch.ones(rows)), tokens, Pair(source, target, VocabMap(to, 9)))
    truth = torch.zeros(9, dtype=torch.float64).index_add_(0, to, logits.double().softmax(1)[0])
    found = densify(aligned.dist)
    torch.testing.assert_close(found.sum(1), torch.ones(rows, dtype=torch.float64), atol=1e-6, rtol=0)
    assert float(standard_errors(found, truth).max()) < 4.5


def test_the_mean_gradient_of_a_linear_loss_is_that_of_the_whole_distribution() -> None:
    logits, student = draw_logits(1), draw_logits(1, seed=5).double()
    teacher = densify(Sampled(n=4)(logits.expand(ROWS, -1), VOCAB))
    gradient = student.softmax(1) - teacher
    assert float(standard_errors(gradient, (student.softmax(1) - logits.double().softmax(1))[0]).max()) < 4.5


def test_strata_never_have_more_variance_than_independent_draws() -> None:
    logits, n = draw_logits(1), 6
    truth = logits.double().softmax(1)[0]
    maps = torch.randn(VOCAB, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = (densify(Sampled(n=n)(logits.expand(ROWS, -1), VOCAB)) @ maps).var(0)
    independent = ((truth @ maps**2) - (truth @ maps) ** 2) / n
    assert bool((found < independent * 1.05).all())
    assert float((found / independent).mean()) < 0.8


def test_rows_have_no_tail_and_no_unknown_and_whole_counts() -> None:
    dist = Sampled(n=7)(draw_logits(50), VOCAB)
    counts = dist.logprobs.double().exp() * 7
    torch.testing.assert_close(counts, counts.round(), atol=1e-5, rtol=0)
    assert torch.equal(torch.zeros(50).index_add_(0, dist.row_of_entry, counts.float()).round(), torch.full((50,), 7.0))
    assert dist.tail_logprob.tolist() == dist.unknown_logprob.tolist() == [-math.inf] * 50
    rising = dist.ids.diff()[dist.row_of_entry.diff() == 0]
    assert bool((rising > 0).all())


def test_draws_depend_on_the_key_and_the_seed_alone() -> None:
    logits, labels, keys = draw_logits(30), torch.arange(30), torch.arange(1000, 1030)
    whole, _ = reduce_logits(logits, labels, Sampled(), VOCAB, row_keys=keys)
    for chunk_rows in (1, 7):
        chunked, _ = reduce_logits(logits, labels, Sampled(), VOCAB, chunk_rows, keys)
        assert torch.equal(chunked.ids, whole.ids)
        assert torch.equal(chunked.logprobs, whole.logprobs)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    shuffled, _ = reduce_logits(logits[order], labels, Sampled(), VOCAB, row_keys=keys[order])
    torch.testing.assert_close(densify(shuffled), densify(whole)[order], rtol=0, atol=0)
    assert not torch.equal(Sampled(seed=1)(logits, VOCAB).row_offsets, Sampled(seed=2)(logits, VOCAB).row_offsets)


def test_uniforms_are_uniform_and_keys_and_draws_are_uncorrelated() -> None:
    uniforms = draw_uniforms(torch.arange(50_000), 4, seed=3)
    assert float(uniforms.min()) >= 0
    assert float(uniforms.max()) < 1
    counts = torch.histc(uniforms, 100, 0, 1)
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 160  # chi-square, 99 degrees of freedom
    shifted = torch.cat([uniforms[:-1], uniforms[1:]], 1).T.corrcoef()
    assert float((shifted - torch.eye(8)).abs().max()) < 0.025


def test_draws_are_the_same_for_ever() -> None:
    # A stored row must be drawn again bit for bit; SplitMix64 itself from the state 0 begins with 0xe220a8397b1dcdaf.
    assert draw_uniforms(torch.tensor([0]), 1, 0).item() == (0xE220A8397B1DCDAF >> 11) * 2.0**-53


def test_padded_and_impossible_columns_are_never_drawn() -> None:
    logits = torch.zeros(400, 6)
    logits[:, 1], logits[:, 5] = -math.inf, 30.0
    drawn = densify(Sampled(n=8)(logits.masked_fill(logits == -math.inf, -1e30), 5))
    assert drawn[:, 1].sum() == 0
    torch.testing.assert_close(drawn.mean(0)[[0, 2, 3, 4]], torch.full((4,), 0.25).double(), atol=0.02, rtol=0)


def test_a_point_at_the_very_end_still_draws_an_id_that_has_mass() -> None:
    almost_one = torch.full((1, 3), 1 - 2.0**-53, dtype=torch.float64)
    assert draw_ids(torch.tensor([[0.5, 0.5, 0.0, 0.0]]), almost_one).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("mode", [TopK(k=5, temperature=2.0), Sampled(n=400, temperature=2.0)], ids=repr)
def test_temperature_flattens_the_rows_but_not_the_labels_nll(mode: TopK | Sampled) -> None:
    logits, labels = draw_logits(10), torch.arange(10)
    dist, nll = reduce_logits(logits, labels, mode, VOCAB)
    truth = (logits.double() / 2).softmax(1)
    found = densify(dist)
    assert float((found - truth)[found > 0].abs().max()) < (1e-6 if isinstance(mode, TopK) else 3 / 400)
    torch.testing.assert_close(nll, torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    assert torch.equal(logits, draw_logits(10))


def test_the_mode_is_read_by_its_kind_and_no_rows_stay_none() -> None:
    assert TypeAdapter(ExtractionMode).validate_python({"kind": "sampled", "n": 3}) == Sampled(n=3)
    assert Sampled()(torch.empty(0, 9), 9).num_rows == 0


def test_keys_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"3 rows, found \(2,\)"):
        reduce_logits(draw_logits(3), torch.zeros(3, dtype=torch.int64), Sampled(), VOCAB, row_keys=torch.arange(2))
