"""Reducing logits to sparse rows, and joining, choosing and mixing these."""

import math

import jaxtyping
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from fusion_core.distributions import (
    ExtractionMode,
    Sampled,
    TopK,
    TopP,
    absent_rows,
    choose_rows,
    concatenate,
    finite_rows,
    mix,
    normalize_known,
    pad,
    reduce_logits,
    take_rows,
)
from fusion_core.distributions.mixing import mix_entries
from fusion_core.distributions.ranking import rank_ids
from fusion_core.types import TokenDist

INF = math.inf
MODES = [TopK(k=1), TopK(k=10), TopK(k=1000), TopP(p=0.5), TopP(p=1.0, k_max=5)]


@pytest.fixture
def unchecked_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user: no annotation is checked, so the functions' own errors are seen."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def draw_logits(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def entries(dist: TokenDist, row: int) -> dict[int, float]:
    one = dist.rows(row, row + 1)
    return dict(zip(one.ids.tolist(), one.logprobs.double().exp().tolist(), strict=True))


def make_dist(rows: list[tuple[dict[int, float], float, float]], vocab_size: int = 10) -> TokenDist:
    """Rows of kept probabilities, tail and unknown mass."""
    kept = [row[0] for row in rows]
    widths = torch.tensor([0, *map(len, kept)])
    return TokenDist(
        row_offsets=widths.cumsum(0),
        ids=torch.tensor([token for row in kept for token in row], dtype=torch.int64),
        logprobs=torch.tensor([prob for row in kept for prob in row.values()]).log(),
        tail_logprob=torch.tensor([row[1] for row in rows]).log(),
        unknown_logprob=torch.tensor([row[2] for row in rows]).log(),
        vocab_size=vocab_size,
    )


def masses(dist: TokenDist) -> torch.Tensor:
    kept = pad(dist)[1].double().exp().sum(1)
    return kept + dist.tail_logprob.double().exp() + dist.unknown_logprob.double().exp()


@pytest.mark.parametrize("k", [1, 3, 7])
def test_top_k_is_the_sorted_full_softmax_cut_off(k: int) -> None:
    logits, vocab_size = draw_logits(6, 12), 9
    dist = TopK(k=k)(logits, vocab_size)
    for row in range(6):
        scores = [float(x) for x in logits[row].double()]
        total = sum(math.exp(score) for score in scores)
        ranked = sorted(range(vocab_size), key=lambda token: (-scores[token], token))[:k]
        one = dist.rows(row, row + 1)
        assert one.ids.tolist() == ranked
        expected = [scores[token] - math.log(total) for token in ranked]
        assert one.logprobs.tolist() == pytest.approx(expected, abs=1e-5)
        rest = sum(math.exp(scores[token]) for token in range(12) if token not in ranked)
        assert dist.tail_logprob[row].item() == pytest.approx(math.log(rest / total), abs=1e-5)


@pytest.mark.parametrize("p", [0.3, 0.9])
def test_top_p_keeps_the_fewest_tokens_that_reach_the_mass(p: float) -> None:
    logits = draw_logits(20, 15)
    dist = TopP(p=p, k_max=15)(logits, 15)
    for row in range(20):
        falling = sorted(logits[row].double().softmax(0).tolist(), reverse=True)
        fewest = next(n for n in range(1, 16) if sum(falling[:n]) >= p)
        assert len(entries(dist, row)) == fewest


def test_top_p_never_keeps_more_than_its_bound_nor_nothing() -> None:
    logits = torch.zeros(2, 100)
    logits[1, 7] = 50.0
    assert TopP(p=0.9, k_max=4)(logits, 100).row_offsets.tolist() == [0, 4, 5]


@pytest.mark.parametrize("mode", MODES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_mass_is_one_in_every_row(mode: TopK | TopP, dtype: torch.dtype) -> None:
    dist = mode(draw_logits(30, 50, dtype=dtype), 45)
    assert torch.allclose(masses(dist), torch.ones(30, dtype=torch.float64), atol=1e-5)
    assert dist.logprobs.dtype == dist.tail_logprob.dtype == torch.float32


def test_of_equal_logits_the_lower_ids_are_kept_first() -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert TopK(k=3)(logits, 5).ids.tolist() == [1, 4, 0, 0, 1, 2]


def test_half_precision_ties_are_broken_by_id() -> None:
    logits = draw_logits(40, 3000, dtype=torch.bfloat16)
    expected = logits.float().sort(dim=1, descending=True, stable=True).indices[:, :50]
    assert torch.equal(TopK(k=50)(logits, 3000).ids.view(40, 50), expected)


@pytest.mark.parametrize(("vocab", "k"), [(20_011, 10), (20_011, 1), (9_000, 64), (64, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_ranks_are_those_of_a_stable_sort_however_many_blocks(vocab: int, k: int, dtype: torch.dtype) -> None:
    logits = draw_logits(16, vocab, dtype=dtype).float()
    logits[0, 5::7] = 20.0  # ties within blocks and across them, and in the last columns
    logits[1] = 0.0
    logits[2], logits[2, ::2] = 0.0, -0.0
    logits[3, -3:] = 30.0
    expected = logits.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(rank_ids(logits, k), expected)


def test_a_tail_far_below_the_candidates_is_no_zero() -> None:
    logits = torch.full((1, 1000), -500.0)
    logits[0, 3] = 0.0
    assert TopK(k=1)(logits, 1000).tail_logprob.item() == pytest.approx(math.log(999) - 500, rel=1e-6)


@pytest.mark.parametrize("mode", [TopK(), TopP(), Sampled()], ids=lambda mode: mode.kind)
def test_a_default_dtype_that_a_loading_model_sets_changes_nothing(mode: TopK | TopP | Sampled) -> None:
    logits = draw_logits(6, 300)
    expected = concatenate([mode(logits, 290), absent_rows(2, 290)])
    torch.set_default_dtype(torch.bfloat16)
    try:
        dist = concatenate([mode(logits, 290), absent_rows(2, 290)])
    finally:
        torch.set_default_dtype(torch.float32)
    for name in ("ids", "logprobs", "tail_logprob", "unknown_logprob"):
        found, wanted = getattr(dist, name), getattr(expected, name)
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)


def test_padded_columns_are_never_candidates_but_have_mass() -> None:
    logits = torch.tensor([[0.0, 0.0, 5.0]])
    dist = TopK(k=3)(logits, 2)
    assert dist.ids.tolist() == [0, 1]
    assert dist.tail_logprob.item() == pytest.approx(5 - math.log(2 + math.exp(5)), abs=1e-6)


def test_tail_is_exact_where_one_minus_the_kept_mass_would_round_to_zero() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0]])
    assert TopK(k=1)(logits, 3).tail_logprob.item() == pytest.approx(math.log(2) - 60, rel=1e-6)


def test_a_row_that_keeps_everything_has_no_tail() -> None:
    assert TopK(k=4)(draw_logits(3, 4), 4).tail_logprob.tolist() == [-INF] * 3


def test_nll_is_the_librarys_cross_entropy_and_nan_without_label() -> None:
    logits, labels = draw_logits(8, 30, dtype=torch.bfloat16), torch.tensor([3, 0, 29, -1, 5, 5, 7, -1])
    _, nll = reduce_logits(logits, labels, TopK(), 30)
    expected = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none", ignore_index=-1)
    assert torch.equal(nll.isnan(), labels == -1)
    assert torch.allclose(nll[labels >= 0], expected[labels >= 0], atol=1e-6)


@pytest.mark.parametrize("mode", MODES, ids=repr)
def test_chunks_do_not_change_the_result(mode: TopK | TopP) -> None:
    logits, labels = draw_logits(23, 200), torch.arange(23)
    whole, nll = reduce_logits(logits, labels, mode, 190, chunk_rows=23)
    for chunk_rows in (1, 4, 22):
        dist, chunked = reduce_logits(logits, labels, mode, 190, chunk_rows=chunk_rows)
        assert torch.equal(dist.ids, whole.ids)
        assert torch.equal(dist.row_offsets, whole.row_offsets)
        assert torch.equal(dist.logprobs, whole.logprobs)
        assert torch.equal(dist.tail_logprob, whole.tail_logprob)
        assert torch.equal(chunked, nll)


def test_no_rows_give_an_empty_distribution() -> None:
    dist, nll = reduce_logits(torch.empty(0, 9), torch.empty(0, dtype=torch.int64), TopK(), 9)
    assert dist.num_rows == len(nll) == 0
    assert dist.row_offsets.tolist() == [0]


def test_rows_that_are_not_finite_are_named_and_refused() -> None:
    logits = draw_logits(5, 8)
    logits[1, 2], logits[3, 0], logits[4, 7] = math.nan, INF, -INF
    assert finite_rows(logits, 7).tolist() == [True, False, True, False, True]
    assert finite_rows(logits, 8).tolist() == [True, False, True, False, False]
    with pytest.raises(ValueError, match="2 of 5 rows, first in row 1"):
        TopK()(logits, 7)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("labels", "vocab_size", "message"),
    [([0, 8], 8, r"0\.\.7"), ([0, -2], 8, "-2"), ([0], 8, "2 rows"), ([0, 0], 9, "8 tokens"), ([0, 0], 0, "8 tokens")],
)
def test_labels_and_vocabularies_that_do_not_fit_are_refused(labels: list[int], vocab_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reduce_logits(draw_logits(2, 8), torch.tensor(labels), TopK(), vocab_size)


def test_a_mode_is_read_by_its_kind_and_checks_its_range() -> None:
    adapter: TypeAdapter[TopK | TopP] = TypeAdapter(ExtractionMode)
    assert adapter.validate_python({"kind": "top_p", "p": 0.5}) == TopP(p=0.5)
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "top_k", "k": 0})


def test_concatenated_slices_are_the_whole() -> None:
    dist = TopP(p=0.8)(draw_logits(9, 20), 20)
    joined = concatenate([dist.rows(0, 4), dist.rows(4, 4), dist.rows(4, 9)])
    assert torch.equal(joined.row_offsets, dist.row_offsets)
    assert torch.equal(joined.ids, dist.ids)
    assert torch.equal(joined.logprobs, dist.logprobs)
    assert torch.equal(joined.tail_logprob, dist.tail_logprob)


def test_distributions_over_other_vocabularies_are_not_joined() -> None:
    with pytest.raises(ValueError, match="7, 9"):
        concatenate([absent_rows(1, 7), absent_rows(1, 9)])
    with pytest.raises(ValueError, match="no distribution"):
        concatenate([])


def test_taken_rows_are_the_rows_and_minus_one_is_absent() -> None:
    dist = TopP(p=0.8)(draw_logits(5, 20), 20)
    taken = take_rows(dist, torch.tensor([3, -1, 0, 3]))
    for row, source in enumerate([3, None, 0, 3]):
        assert entries(taken, row) == ({} if source is None else entries(dist, source))
    assert taken.present.tolist() == [True, False, True, True]
    assert taken.unknown_logprob.tolist() == [-INF, 0.0, -INF, -INF]
    assert take_rows(absent_rows(0, 9), torch.tensor([-1])).present.tolist() == [False]


def test_padding_is_impossible_and_entries_keep_their_order() -> None:
    ids, logprobs = pad(make_dist([({4: 0.5, 2: 0.25}, 0.25, 0), ({}, 0, 1), ({9: 1.0}, 0, 0)]))
    assert ids.tolist() == [[4, 2], [0, 0], [9, 0]]
    assert logprobs.exp().tolist() == [[0.5, 0.25], [0, 0], [1, 0]]
    assert pad(absent_rows(0, 3))[0].shape == (0, 0)


def test_known_mass_is_scaled_to_one_and_absent_rows_stay_absent() -> None:
    known = normalize_known(make_dist([({1: 0.3, 2: 0.1}, 0.1, 0.5), ({}, 0, 1)]))
    assert entries(known, 0) == pytest.approx({1: 0.6, 2: 0.2})
    assert known.tail_logprob.exp().tolist() == pytest.approx([0.2, 0])
    assert known.unknown_logprob.tolist() == [-INF, 0.0]


def test_a_mixture_sums_kept_mass_and_knows_only_the_tail_of_who_keeps_the_union() -> None:
    first = make_dist([({1: 0.5, 2: 0.3}, 0.2, 0), ({1: 1.0}, 0, 0)])
    second = make_dist([({2: 0.4}, 0.5, 0.1), ({}, 0, 1)])
    mixed = mix([first, second], torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
    assert entries(mixed, 0) == pytest.approx({1: 0.375, 2: 0.325})
    assert entries(mixed, 1) == pytest.approx({1: 0.25})
    assert mixed.tail_logprob.exp().tolist() == pytest.approx([0.75 * 0.2, 0])
    assert mixed.unknown_logprob.exp().tolist() == pytest.approx([0.25 * 0.6, 0.75])


@pytest.mark.parametrize("k", [3, 40])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_mixture_is_the_same_row_by_row_and_of_all_entries_at_once(k: int, threads: int) -> None:
    dists = [TopK(k=k)(draw_logits(13, 50, seed), 50) for seed in range(3)]
    dists[1] = take_rows(dists[1], torch.arange(13).masked_fill(torch.arange(13) % 4 == 0, -1))
    weights = torch.rand(3, 13, generator=torch.Generator().manual_seed(5)) * (torch.arange(13) % 5 > 0)
    weights[0] += 0.1
    weights /= weights.sum(0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = mix(dists, weights)
    finally:
        torch.set_num_threads(before)
    expected = mix_entries(dists, weights)
    assert torch.equal(found.row_offsets, expected.row_offsets)
    assert torch.equal(found.ids, expected.ids)
    for name in ("logprobs", "tail_logprob", "unknown_logprob"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=2e-6)


def test_chosen_rows_are_ours_where_said_and_the_others_elsewhere() -> None:
    ours, others = (TopK(k=k)(draw_logits(6, 30, seed=k), 30) for k in (2, 4))
    first = torch.tensor([True, False, True, True, False, False])
    found = choose_rows(first, ours, others)
    assert [entries(found, r) for r in range(6)] == [entries(ours if first[r] else others, r) for r in range(6)]


def test_a_mixture_bounds_the_true_one_from_below() -> None:
    logits = [draw_logits(12, 30, seed) for seed in (1, 2, 3)]
    weights = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)).softmax(0)
    truth = sum(weight.unsqueeze(1) * x.softmax(1) for weight, x in zip(weights, logits, strict=True))
    mixed = mix([TopK(k=4)(x, 30) for x in logits], weights)
    assert torch.allclose(masses(mixed), torch.ones(12, dtype=torch.float64), atol=1e-6)
    for row in range(12):
        kept, unknown = entries(mixed, row), mixed.unknown_logprob[row].exp().item()
        outside = 1 - sum(truth[row, token].item() for token in kept)
        assert all(prob <= truth[row, token].item() + 1e-6 <= prob + unknown + 2e-6 for token, prob in kept.items())
        assert mixed.tail_logprob[row].exp().item() <= outside + 1e-6


def test_a_mixture_of_full_rows_is_exact_and_equals_mix_to_themselves() -> None:
    logits = [draw_logits(6, 9, seed) for seed in (1, 2)]
    full = [TopK(k=9)(x, 9) for x in logits]
    half = mix(full, torch.full((2, 6), 0.5))
    assert torch.allclose(half.logprobs.exp().view(6, 9), (logits[0].softmax(1) + logits[1].softmax(1)) / 2, atol=1e-6)
    cut = TopK(k=3)(logits[0], 9)
    same = mix([cut, cut], torch.tensor([[0.3] * 6, [0.7] * 6]))
    assert all(entries(same, row) == pytest.approx(entries(cut, row)) for row in range(6))
    assert torch.allclose(same.tail_logprob, cut.tail_logprob, atol=1e-6)


def test_a_weight_of_zero_leaves_no_trace() -> None:
    first, second = (TopK(k=3)(draw_logits(6, 9, seed), 9) for seed in (1, 2))
    mixed = mix([first, second], torch.tensor([[1.0] * 6, [0.0] * 6]))
    assert all(entries(mixed, row) == pytest.approx(entries(first, row)) for row in range(6))
    assert mixed.unknown_logprob.tolist() == [-INF] * 6


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("weights", [[[0.5], [0.6]], [[1.5], [-0.5]], [[math.nan], [0.5]], [[0.5, 0.5], [0.5, 0.5]]])
def test_weights_that_are_no_weights_are_refused(weights: list[list[float]]) -> None:
    dist = make_dist([({1: 1.0}, 0, 0)])
    with pytest.raises(ValueError, match="weights"):
        mix([dist, dist], torch.tensor(weights))
