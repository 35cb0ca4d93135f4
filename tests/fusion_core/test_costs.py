"""What the candidates are judged by at each level, against definitions in loops."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fusion_core.costs import block_costs, sequence_costs, token_costs
from fusion_core.distributions import TopK, absent_rows, take_rows
from fusion_core.fusion import AvgCE, MinCE
from fusion_core.types import Aligned, Tokens

INF = math.inf
VOCAB = 12


def make_target(*boundaries: list[int]) -> Tokens:
    flat = [boundary for document in boundaries for boundary in document]
    offsets = torch.tensor([0, *map(len, boundaries)]).cumsum(0)
    return Tokens(torch.arange(len(flat)), torch.tensor(flat, dtype=torch.int64), offsets)


def make_candidate(spans: list[float], seed: int = 0, tokens: list[int] | None = None) -> Aligned:
    logits = torch.randn(len(spans), VOCAB, generator=torch.Generator().manual_seed(seed))
    counts = torch.tensor(tokens or [1] * len(spans))
    return Aligned(TopK(k=3)(logits, VOCAB), torch.tensor(spans, dtype=torch.float32), counts)


def drop_rows(candidate: Aligned, rows: list[int]) -> Aligned:
    index = torch.arange(candidate.dist.num_rows)
    index[rows] = -1
    return replace(candidate, dist=take_rows(candidate.dist, index))


def draw_shard(seed: int, holes: float = 0.3) -> tuple[list[Aligned], Tokens]:
    """Three candidates on twelve documents, some of one token, with spans and rows missing at random."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    documents = [sorted(set((draw(int(draw(1) * 14) + 1) * 60).long().tolist())) for _ in range(12)]
    target = make_target(*documents)
    rows = len(target.ids)
    candidates = []
    for number in range(3):
        spans = (draw(rows) * 4).masked_fill(draw(rows) < holes, math.nan)
        tokens = (draw(rows) * 3).long() + 1
        candidate = make_candidate(spans.tolist(), number, tokens.tolist())
        candidates.append(drop_rows(candidate, (draw(rows) < holes).nonzero().flatten().tolist()))
    return candidates, target


def spent(candidate: Aligned, start: int, stop: int, num_bytes: int, score: str) -> float:
    """The cost of the spans that end in the rows start + 1 .. stop."""
    nats = sum(float(x) for x in candidate.span_nll[start + 1 : stop + 1] if not x.isnan())
    per = (
        int(candidate.span_tokens[start + 1 : stop + 1].sum()) if score == "nats_per_token" else num_bytes * math.log(2)
    )
    return nats / per


def shared_rows(candidates: list[Aligned], target: Tokens, document: int) -> tuple[list[int], list[bool]]:
    rows = range(*target.doc_offsets[document : document + 2].tolist())
    takes_part = [
        bool(c.dist.present[rows.start : rows.stop].any())
        and int(c.span_nll[rows.start : rows.stop].isfinite().sum()) >= 2
        for c in candidates
    ]
    judged = [c for c, part in zip(candidates, takes_part, strict=True) if part]
    return [r for r in rows if judged and all(not c.span_nll[r].isnan() for c in judged)], takes_part


def define_document_costs(candidates: list[Aligned], target: Tokens, document: int, score: str) -> list[float] | None:
    shared, takes_part = shared_rows(candidates, target, document)
    if len(shared) < 2:
        return None
    size = int(target.boundaries[shared[-1]] - target.boundaries[shared[0]])
    costs = [spent(c, shared[0], shared[-1], size, score) for c in candidates]
    return [cost if part else INF for cost, part in zip(costs, takes_part, strict=True)]


def first_present(candidates: list[Aligned], rows: list[int]) -> list[float]:
    first = next((i for i, c in enumerate(candidates) if bool(c.dist.present[rows].any())), 0)
    return [0.0 if i == first else INF for i in range(len(candidates))]


def define_token_costs(candidates: list[Aligned], target: Tokens, row: int, score: str, window: int) -> list[float]:
    shared, takes_part = shared_rows(candidates, target, int(target.doc_of_token[row]))
    past = [r for r in shared if r <= row]
    costs = [0.0] * len(candidates)
    if past:
        end = int(target.boundaries[past[-1]])
        start = max([r for r in past if int(target.boundaries[r]) <= end - window], default=past[0])
        size = end - int(target.boundaries[start])
        costs = [spent(c, start, past[-1], size, score) if size else 0.0 for c in candidates]
    judged = [c if part or not any(takes_part) else INF for c, part in zip(costs, takes_part, strict=True)]
    judged = [c if bool(k.dist.present[row]) else INF for c, k in zip(judged, candidates, strict=True)]
    return first_present(candidates, [row]) if min(judged) == INF else judged


@pytest.mark.parametrize("score", ["bits_per_byte", "nats_per_token"])
@pytest.mark.parametrize("seed", range(4))
def test_costs_are_their_definitions_on_random_shards(seed: int, score: Any) -> None:
    candidates, target = draw_shard(seed)
    whole = sequence_costs(candidates, target, score)
    for document in range(target.num_docs):
        rows = list(range(*target.doc_offsets[document : document + 2].tolist()))
        expected = define_document_costs(candidates, target, document, score)
        expected = first_present(candidates, rows) if expected is None or min(expected) == INF else expected
        for row in rows:
            assert whole[:, row].tolist() == pytest.approx(expected, rel=1e-5)
    for window in (1, 7, 20, 1000):
        found = token_costs(candidates, target, score, window)
        for row in range(len(target.ids)):
            expected = define_token_costs(candidates, target, row, score, window)
            assert found[:, row].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("holes", [0.0, 0.3])
@pytest.mark.parametrize("block_tokens", [1, 5, 16, 10_000])
def test_a_block_costs_the_mean_of_its_tokens_documents(block_tokens: int, holes: float) -> None:
    candidates, target = draw_shard(7, holes)
    found = block_costs(candidates, target, "nats_per_token", block_tokens)
    per_document = [define_document_costs(candidates, target, d, "nats_per_token") for d in range(target.num_docs)]
    for start in range(0, len(target.ids), block_tokens):
        rows = list(range(start, min(start + block_tokens, len(target.ids))))
        counted = [c for r in rows if (c := per_document[int(target.doc_of_token[r])]) is not None]
        expected = [sum(costs) / len(counted) for costs in zip(*counted, strict=True)] or [INF]
        if min(expected) == INF:
            expected = first_present(candidates, rows)
        assert found[:, start].tolist() == pytest.approx(expected, rel=1e-5)
        assert bool((found[:, rows] == found[:, start : start + 1]).all())


@pytest.mark.parametrize(
    "strategy", [MinCE(level="token", window_bytes=9), AvgCE(level="token", window_bytes=9)], ids=repr
)
def test_by_token_no_choice_depends_on_the_label_or_what_follows(strategy: MinCE | AvgCE) -> None:
    candidates, target = draw_shard(3, holes=0.0)
    before = strategy(candidates, target)
    for row in range(len(target.ids)):
        later = [replace(c, span_nll=c.span_nll.clone()) for c in candidates]
        for candidate in later[1:]:
            candidate.span_nll[row + 1 :] *= 50
        after = strategy(later, target)
        assert torch.equal(after.winner[: row + 1], before.winner[: row + 1])
        same, found = before.dist.rows(0, row + 1), after.dist.rows(0, row + 1)
        assert torch.equal(found.ids, same.ids)
        torch.testing.assert_close(found.logprobs, same.logprobs, rtol=0, atol=5e-7)


def test_by_token_the_winner_changes_within_a_document() -> None:
    target = make_target([0, 4, 8, 12, 16])
    candidates = [make_candidate([0, 1, 1, 9, 9]), make_candidate([0, 9, 9, 1, 1])]
    assert MinCE(level="token", window_bytes=4)(candidates, target).winner.tolist() == [0, 0, 0, 1, 1]
    assert MinCE(level="token", window_bytes=8)(candidates, target).winner.tolist() == [0, 0, 0, 0, 1]
    assert MinCE()(candidates, target).winner.tolist() == [0] * 5


def test_by_token_who_is_absent_in_a_row_is_not_asked_there() -> None:
    target = make_target([0, 4, 8])
    candidates = [drop_rows(make_candidate([0, 1, 1]), [1]), drop_rows(make_candidate([0, 2, 2]), [2])]
    for strategy in (MinCE(level="token"), AvgCE(level="token")):
        fused = strategy(candidates, target)
        assert fused.winner.tolist() == [0, 1, 0]
    assert MinCE(level="token")([candidates[0]] * 2, target).winner.tolist() == [0, -1, 0]


def test_a_block_that_holds_every_document_has_one_winner_and_small_blocks_have_their_documents() -> None:
    target = make_target([0, 4], [0, 4], [0, 4])
    candidates = [make_candidate([0, 1, 0, 9, 0, 1]), make_candidate([0, 2, 0, 2, 0, 2])]
    assert MinCE(level="block", block_tokens=6)(candidates, target).winner.tolist() == [1] * 6
    assert MinCE(level="block", block_tokens=2)(candidates, target).winner.tolist() == [0, 0, 1, 1, 0, 0]
    assert MinCE(level="block", block_tokens=4)(candidates, target).winner.tolist() == [1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("level", ["sequence", "block", "token"])
def test_no_rows_and_nobody_present_are_fused_without_a_winner(level: Any) -> None:
    for strategy in (MinCE(level=level), AvgCE(level=level)):
        nothing = Aligned(absent_rows(0, VOCAB), torch.empty(0), torch.empty(0, dtype=torch.int64))
        assert len(strategy([nothing, nothing], make_target([], [])).winner) == 0
        absent = Aligned(absent_rows(2, VOCAB), torch.tensor([0.0, 1.0]), torch.tensor([0, 1]))
        assert strategy([absent, absent], make_target([0, 4])).winner.tolist() == [-1, -1]


def test_levels_and_sizes_out_of_range_are_refused() -> None:
    for wrong in ({"level": "word"}, {"block_tokens": 0}, {"window_bytes": 0}, {"tau": 0}):
        with pytest.raises(ValidationError):
            AvgCE.model_validate(wrong)
