"""Who teaches which document, by hand-made candidates and by a definition in loops."""

import math

import jaxtyping
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from fusion_core.distributions import TopK, absent_rows, take_rows
from fusion_core.fusion import AvgCE, FusionFacts, FusionStrategy, MinCE, StaticWeights, as_candidate, summarize_fusion
from fusion_core.types import Aligned, Scored, TokenDist, Tokens

NAN = math.nan
VOCAB = 12
LN2 = math.log(2)


def make_target(*boundaries: list[int]) -> Tokens:
    """One document per list."""
    flat = [boundary for document in boundaries for boundary in document]
    return Tokens(
        ids=torch.arange(len(flat)),
        boundaries=torch.tensor(flat),
        doc_offsets=torch.tensor([0, *map(len, boundaries)]).cumsum(0),
    )


def draw_dist(rows: int, seed: int) -> TokenDist:
    return TopK(k=3)(torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)), VOCAB)


def make_candidate(span_nll: list[float], seed: int, tokens: list[int] | None = None) -> Aligned:
    rows = len(span_nll)
    spans = torch.tensor(span_nll, dtype=torch.float32)
    counts = torch.tensor(tokens) if tokens else (spans > 0).long()
    return Aligned(dist=draw_dist(rows, seed), span_nll=spans, span_tokens=counts)


def drop_rows(candidate: Aligned, rows: list[int]) -> Aligned:
    index = torch.arange(candidate.dist.num_rows)
    index[rows] = -1
    return Aligned(take_rows(candidate.dist, index), candidate.span_nll, candidate.span_tokens)


def assert_same_rows(found: TokenDist, expected: TokenDist) -> None:
    assert torch.equal(found.row_offsets, expected.row_offsets)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.logprobs, expected.logprobs)
    assert torch.equal(found.tail_logprob, expected.tail_logprob)


def test_the_cheapest_candidate_teaches_each_document() -> None:
    target = make_target([0, 2, 5, 9], [0, 4, 8])
    first = make_candidate([0, 1, 1, 1, 0, 9, 9], seed=1)
    second = make_candidate([0, 2, 2, 2, 0, 1, 1], seed=2)
    fused = MinCE()([first, second], target)
    assert fused.winner.tolist() == [0] * 4 + [1] * 3
    assert_same_rows(fused.dist.rows(0, 4), first.dist.rows(0, 4))
    assert_same_rows(fused.dist.rows(4, 7), second.dist.rows(4, 7))


def test_only_bytes_that_all_candidates_score_are_compared() -> None:
    target = make_target([0, 2, 5, 9, 12])
    narrow = make_candidate([NAN, 0, 3, 3, NAN], seed=1)
    cheap_there = make_candidate([0, 50, 2, 2, 50], seed=2)
    assert MinCE()([narrow, cheap_there], target).winner.tolist() == [1] * 5
    facts = summarize_fusion(MinCE()([narrow, cheap_there], target), [narrow, cheap_there], target)
    assert facts.bytes == (7, 7)
    assert facts.nats == (6.0, 4.0)
    assert facts.bits_per_byte == pytest.approx((6 / (7 * LN2), 4 / (7 * LN2)))


def test_spans_between_shared_rows_count_in_full() -> None:
    target = make_target([0, 2, 5, 9])
    coarse = make_candidate([0, NAN, NAN, 5], seed=1)
    fine = make_candidate([0, 2, 2, 2], seed=2)
    facts = summarize_fusion(MinCE()([coarse, fine], target), [coarse, fine], target)
    assert facts.nats == (5.0, 6.0)


def test_rows_without_boundary_never_bound_the_comparison() -> None:
    target = make_target([0, 4, 8, -1])
    first, second = make_candidate([0, 1, 1, NAN], seed=1), make_candidate([0, 2, 2, NAN], seed=2)
    assert summarize_fusion(MinCE()([first, second], target), [first, second], target).bytes == (8, 8)


@pytest.mark.parametrize("score", ["bits_per_byte", "nats_per_token"])
def test_the_score_decides_between_fine_and_coarse_tokens(score: str) -> None:
    target = make_target([0, 4, 8])
    fine = make_candidate([0, 6, 6], seed=1, tokens=[0, 4, 4])
    coarse = make_candidate([0, 4, 4], seed=2, tokens=[0, 1, 1])
    winner = {"bits_per_byte": 1, "nats_per_token": 0}[score]
    assert MinCE(score=score)([fine, coarse], target).winner.tolist() == [winner] * 3


def test_ties_go_to_the_earlier_candidate() -> None:
    target = make_target([0, 4, 8])
    twins = [make_candidate([0, 3, 3], seed=seed) for seed in (1, 2, 3)]
    assert MinCE()(twins, target).winner.tolist() == [0] * 3


def test_a_gap_below_half_precision_still_decides() -> None:
    target = make_target([0, 1])
    candidates = [make_candidate([0, 2.005], seed=1), make_candidate([0, 2.000], seed=2)]
    assert MinCE()(candidates, target).winner.tolist() == [1, 1]


def test_rows_that_the_winner_lacks_stay_absent() -> None:
    target = make_target([0, 4, 8])
    winner = drop_rows(make_candidate([0, 1, 1], seed=1), [1])
    fused = MinCE()([winner, make_candidate([0, 2, 2], seed=2)], target)
    assert fused.winner.tolist() == [0, -1, 0]
    assert fused.dist.present.tolist() == [True, False, True]


def test_where_nothing_can_be_compared_the_first_who_knows_a_row_teaches() -> None:
    target = make_target([0, 4, 8], [0, 3])
    silent = drop_rows(make_candidate([NAN] * 5, seed=1), [0, 1, 2])
    second = make_candidate([NAN, NAN, 0, NAN, NAN], seed=2)
    third = make_candidate([NAN] * 5, seed=3)
    for strategy in (MinCE(), AvgCE()):
        assert strategy([silent, second, third], target).winner.tolist() == [1, 1, 1, 0, 0]


def test_a_candidate_that_lost_a_document_does_not_stop_the_others() -> None:
    target = make_target([0, 4, 8])
    lost = drop_rows(make_candidate([NAN] * 3, seed=1), [0, 1, 2])
    candidates = [lost, make_candidate([0, 5, 5], seed=2), make_candidate([0, 1, 1], seed=3)]
    assert MinCE()(candidates, target).winner.tolist() == [2] * 3
    facts = summarize_fusion(MinCE()(candidates, target), candidates, target)
    assert facts.bytes == (0, 8, 8)
    assert math.isnan(facts.bits_per_byte[0])


def test_a_document_that_nobody_teaches_stays_absent() -> None:
    target = make_target([0, 4])
    nobody = [Aligned(absent_rows(2, VOCAB), torch.tensor([0.0, 1.0]), torch.tensor([0, 1])) for _ in range(2)]
    for strategy in (MinCE(), AvgCE(), StaticWeights(weights=(1, 1))):
        fused = strategy(nobody, target)
        assert fused.winner.tolist() == [-1, -1]
        assert not fused.dist.present.any()
        assert fused.dist.unknown_logprob.exp().tolist() == pytest.approx([1, 1])


def test_min_ce_is_its_definition_on_random_spans() -> None:
    generator = torch.Generator().manual_seed(0)
    documents = [sorted(set(torch.randint(0, 60, (12,), generator=generator).tolist())) for _ in range(30)]
    target = make_target(*documents)
    rows = len(target.ids)
    candidates = []
    for seed in range(3):
        spans = torch.rand(rows, generator=generator) * 4
        spans[torch.rand(rows, generator=generator) < 0.3] = NAN
        candidates.append(make_candidate(spans.tolist(), seed))
    fused = MinCE()(candidates, target)
    for document in range(30):
        start, stop = target.doc_offsets[document : document + 2].tolist()
        shared = [r for r in range(start, stop) if all(not c.span_nll[r].isnan() for c in candidates)]
        winner = 0
        if len(shared) >= 2:
            costs = [
                sum(float(c.span_nll[r]) for r in range(shared[0] + 1, shared[-1] + 1) if not c.span_nll[r].isnan())
                for c in candidates
            ]
            winner = costs.index(min(costs))
        assert fused.winner[start:stop].tolist() == [winner] * (stop - start)


def test_avg_ce_weighs_by_bits_per_byte_over_tau() -> None:
    target = make_target([0, 10])
    gap = 0.1 * 10 * LN2
    candidates = [make_candidate([0, 1 + gap], seed=1), make_candidate([0, 1], seed=2)]
    fused = AvgCE()(candidates, target)
    weight = 1 / (1 + math.e)
    expected = StaticWeights(weights=(weight, 1 - weight))(candidates, target)
    assert torch.equal(fused.dist.ids, expected.dist.ids)
    torch.testing.assert_close(fused.dist.logprobs, expected.dist.logprobs, rtol=1e-5, atol=1e-5)
    assert fused.winner.tolist() == [1, 1]


def test_small_tau_is_min_ce() -> None:
    target = make_target([0, 4, 8])
    candidates = [make_candidate([0, 3, 3], seed=1), make_candidate([0, 1, 1], seed=2)]
    mixed, chosen = AvgCE(tau=1e-3)(candidates, target), MinCE()(candidates, target)
    assert torch.equal(mixed.winner, chosen.winner)
    assert torch.equal(mixed.dist.row_offsets, chosen.dist.row_offsets)


def test_only_the_ratios_of_static_weights_count() -> None:
    target = make_target([0, 4, 8])
    candidates = [make_candidate([0, 3, 3], seed=1), make_candidate([NAN, NAN, NAN], seed=2)]
    first = StaticWeights(weights=(3, 1))(candidates, target)
    second = StaticWeights(weights=(0.75, 0.25))(candidates, target)
    assert_same_rows(first.dist, second.dist)
    assert first.winner.tolist() == [0] * 3


def test_a_mixture_names_the_heaviest_part_that_is_there() -> None:
    target = make_target([0, 4, 8])
    heavy = drop_rows(make_candidate([0, 3, 3], seed=1), [2])
    fused = StaticWeights(weights=(3, 1))([heavy, make_candidate([0, 3, 3], seed=2)], target)
    assert fused.winner.tolist() == [0, 0, 1]


def test_a_single_candidate_is_its_own_teacher() -> None:
    target = make_target([0, 4, 8])
    only = make_candidate([0, 3, 3], seed=1)
    assert_same_rows(MinCE()([only], target).dist, only.dist)


def test_no_documents_fuse_to_no_rows() -> None:
    empty = Aligned(absent_rows(0, VOCAB), torch.empty(0), torch.empty(0, dtype=torch.int64))
    target = Tokens(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), torch.tensor([0]))
    for strategy in (MinCE(), AvgCE(), StaticWeights(weights=(1, 1))):
        fused = strategy([empty, empty], target)
        assert fused.dist.num_rows == 0
        assert summarize_fusion(fused, [empty, empty], target).documents_won == (0, 0)


def test_the_target_as_candidate_spends_its_nll_between_its_boundaries() -> None:
    tokens = make_target([0, 2, -1, 7, -1], [3, 5])
    nll = torch.tensor([1.0, 2.0, 4.0, 8.0, NAN, 16.0, NAN])
    own = as_candidate(Scored(tokens=tokens, dist=draw_dist(7, 0), nll=nll))
    expected = [0, 1, NAN, 6, NAN, 0, 16]
    assert own.span_nll.tolist() == pytest.approx(expected, nan_ok=True)
    assert own.span_tokens.tolist() == [0, 1, 0, 2, 0, 0, 1]


def test_cost_of_a_single_target_is_its_own_bits_per_byte() -> None:
    tokens = make_target([0, 3, 4, 9, -1])
    nll = torch.tensor([1.5, 2.5, 0.5, 7.0, NAN])
    own = as_candidate(Scored(tokens=tokens, dist=draw_dist(5, 0), nll=nll))
    facts = summarize_fusion(MinCE()([own], tokens), [own], tokens)
    assert facts.bits_per_byte == pytest.approx((4.5 / (9 * LN2),))


def test_facts_count_wins_and_add_up() -> None:
    target = make_target([0, 2, 5, 9], [0, 4, 8])
    first = drop_rows(make_candidate([0, 1, 1, 1, 0, 9, 9], seed=1), [3])
    second = make_candidate([0, 2, 2, 2, 0, 1, 1], seed=2)
    facts = summarize_fusion(MinCE()([first, second], target), [first, second], target)
    expected = FusionFacts(2, 7, 6, documents_won=(1, 1), rows_won=(3, 3), nats=(21.0, 8.0), bytes=(17, 17))
    assert facts == expected
    assert (facts + facts).rows_won == (6, 6)
    assert (facts + facts).bits_per_byte == pytest.approx(facts.bits_per_byte)


def test_facts_of_some_documents_are_those_of_a_shard_without_the_others() -> None:
    target = make_target([0, 2, 5, 9], [0, 4, 8])
    first = drop_rows(make_candidate([0, 1, 1, 1, 0, 9, 9], seed=1), [3])
    candidates = [first, make_candidate([0, 2, 2, 2, 0, 1, 1], seed=2)]
    fused = MinCE()(candidates, target)
    parts = [summarize_fusion(fused, candidates, target, torch.tensor(only)) for only in ([True, False], [False, True])]
    assert parts[0] == FusionFacts(1, 4, 3, documents_won=(1, 0), rows_won=(3, 0), nats=(3.0, 6.0), bytes=(9, 9))
    assert parts[0] + parts[1] == summarize_fusion(fused, candidates, target)
    wanted = torch.tensor([1, 0, 1, 1, 1, 1, 1]).bool()  # a row that a template's token follows
    without = summarize_fusion(fused, candidates, target, torch.tensor([True, False]), wanted)
    assert without == FusionFacts(1, 3, 2, documents_won=(1, 0), rows_won=(2, 0), nats=(3.0, 6.0), bytes=(9, 9))


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    target = make_target([0, 4, 8])
    candidate = make_candidate([0, 3, 3], seed=1)
    with pytest.raises(ValueError, match="found 0"):
        MinCE()([], target)
    with pytest.raises(ValueError, match=r"3 rows, .*found \[2\]"):
        MinCE()([make_candidate([0, 3], seed=1)], target)
    with pytest.raises(ValueError, match="3 weights for 1 candidates"):
        StaticWeights(weights=(1, 1, 1))([candidate], target)


@pytest.mark.parametrize(
    "spec",
    [{"kind": "avg_ce", "tau": 0}, {"kind": "static_weights", "weights": [0, 0]}, {"kind": "min_ce", "score": "x"}],
)
def test_specs_check_their_range(spec: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(FusionStrategy).validate_python(spec)
