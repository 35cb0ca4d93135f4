"""Rows on the target's ids: the kernel, the path for other devices, and the definition by loops agree."""

import math

import pytest
import torch

from fusion_core.alignment.pair import Pair
from fusion_core.alignment.projection import project_entries, project_rows
from fusion_core.types import TokenDist, VocabMap
from fusion_core.vocabulary import Vocabulary

SOURCE_SIZE, TARGET_SIZE = 90, 20
WIDTHS = {"short": 8, "wide": 80}


def make_pair(seed=0):
    """Many source ids share a target id; ids 0 to 2 have no bytes, and go nowhere as some with bytes do."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, TARGET_SIZE, (SOURCE_SIZE,), generator=generator)
    ids[:3] = -1
    surfaces = [(b"", b"", b"", *(bytes([i]) for i in range(3, size))) for size in (SOURCE_SIZE, TARGET_SIZE)]
    source, target = (Vocabulary(s, {}, False, False) for s in surfaces)
    return Pair(source, target, VocabMap(ids, TARGET_SIZE))


def make_dist(widest, dtype=torch.float64, rows=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    widths = torch.randint(0, widest + 1, (rows,), generator=generator)
    shares = [torch.randn(n + 2, generator=generator, dtype=torch.float64).log_softmax(0) for n in widths.tolist()]
    ids = [torch.randperm(SOURCE_SIZE, generator=generator)[:n] for n in widths.tolist()]
    logprobs, tail, unknown = (
        torch.cat([s[:-2] for s in shares]),
        torch.stack([s[-2] for s in shares]),
        torch.stack([s[-1] for s in shares]),
    )
    tail[widths == 0], unknown[widths == 0] = -torch.inf, 0.0
    offsets = torch.nn.functional.pad(widths.cumsum(0), (1, 0))
    return TokenDist(offsets, torch.cat(ids), logprobs.to(dtype), tail.to(dtype), unknown.to(dtype), SOURCE_SIZE)


def draw_rows(count=70, seed=2):
    return torch.randint(-1, 40, (count,), generator=torch.Generator().manual_seed(seed))


def define_row(dist, row, pair):
    """Kept, tail and unknown mass of one row."""
    if row < 0:
        return {}, 0.0, 1.0
    kept, tail, unknown = {}, math.exp(dist.tail_logprob[row]), math.exp(dist.unknown_logprob[row])
    for entry in range(dist.row_offsets[row], dist.row_offsets[row + 1]):
        token, prob = int(dist.ids[entry]), math.exp(dist.logprobs[entry])
        target = int(pair.vocab_map.ids[token])
        if target >= 0:
            kept[target] = kept.get(target, 0.0) + prob
        elif pair.source.surfaces[token]:
            unknown += prob
        else:
            tail += prob
    return kept, tail, unknown if kept or tail else 1.0


@pytest.mark.parametrize("widest", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("project", [project_rows, project_entries])
def test_rows_follow_the_definition_by_loops(project, widest):
    dist, rows, pair = make_dist(widest), draw_rows(), make_pair()
    found = project(dist, rows, pair)
    assert (found.num_rows, found.vocab_size) == (len(rows), TARGET_SIZE)
    for place, row in enumerate(rows.tolist()):
        kept, tail, unknown = define_row(dist, row, pair)
        start, stop = found.row_offsets[place : place + 2].tolist()
        assert found.ids[start:stop].tolist() == sorted(kept)
        assert found.logprobs[start:stop].exp().tolist() == pytest.approx([kept[t] for t in sorted(kept)], abs=1e-14)
        assert found.tail_logprob[place].exp().item() == pytest.approx(tail, abs=1e-14)
        assert found.unknown_logprob[place].exp().item() == pytest.approx(unknown, abs=1e-14)


def test_candidates_meet_on_target_ids_in_short_and_wide_rows():
    for widest in WIDTHS.values():
        dist = make_dist(widest)
        assert len(project_rows(dist, torch.arange(40), make_pair()).ids) < 0.9 * len(dist.ids)


@pytest.mark.parametrize(
    ("given", "returned"),
    [(torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_log_probabilities_are_at_least_single_precision(given, returned):
    dist, exact = make_dist(8, given), make_dist(8)
    found, expected = (project_rows(d, draw_rows(), make_pair()) for d in (dist, exact))
    assert found.logprobs.dtype == found.tail_logprob.dtype == found.unknown_logprob.dtype == returned
    assert torch.equal(found.ids, expected.ids)
    error = (found.logprobs.double() - expected.logprobs).abs().max()
    assert error <= 8 * torch.finfo(given).eps * expected.logprobs.abs().max()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_nothing(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = project_rows(make_dist(8), draw_rows(), make_pair())
    finally:
        torch.set_num_threads(before)
    expected = project_rows(make_dist(8), draw_rows(), make_pair())
    for name in ("row_offsets", "ids", "logprobs", "tail_logprob", "unknown_logprob"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_candidates_of_no_probability_stay_candidates_of_none():
    dist = make_dist(8)
    dist.logprobs[:] = -torch.inf
    found = project_rows(dist, torch.arange(40), make_pair())
    assert len(found.ids) > 0
    assert found.logprobs.eq(-torch.inf).all()


def test_no_rows_give_an_empty_distribution():
    found = project_rows(make_dist(8), torch.zeros(0, dtype=torch.int64), make_pair())
    assert (found.num_rows, found.row_offsets.tolist(), len(found.ids)) == (0, [0], 0)


def test_ids_outside_the_vocabulary_are_refused():
    dist = make_dist(8)
    dist.ids[5] = SOURCE_SIZE
    with pytest.raises(ValueError, match=f"0..{SOURCE_SIZE - 1}, but found 0..{SOURCE_SIZE}"):
        project_rows(dist, draw_rows(), make_pair())
