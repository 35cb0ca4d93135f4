"""A target row takes the source row at the same byte, and no mass is lost or made on the way."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter

from fusion_core.alignment import AlignmentStrategy, ByteBoundary, Pair, common_rows, summarize
from fusion_core.types import NO_BOUNDARY, Scored, TokenDist, Tokens, VocabMap
from fusion_core.vocabulary import Vocabulary

INF = math.inf
SOURCE_SIZE, TARGET_SIZE = 23, 11
TAILS = ["outside", "strict"]


def make_vocabulary(size, adds_prefix_space=False):
    """Id 0 begins texts, 1 ends them, 2 is another special token, the rest has bytes."""
    surfaces = (b"", b"", b"", *(bytes([97 + i]) for i in range(size - 3)))
    return Vocabulary(surfaces, {"bos": 0, "eos": 1}, adds_prefix_space, False)


def make_pair(generator, homeless=True, prefixes=(False, False)):
    ids = torch.randint(3, TARGET_SIZE, (SOURCE_SIZE,), generator=generator)
    ids[:3] = torch.tensor([-1, 1, -1])
    if homeless:
        ids[5:7] = -1
    source, target = make_vocabulary(SOURCE_SIZE, prefixes[0]), make_vocabulary(TARGET_SIZE, prefixes[1])
    return Pair(source, target, VocabMap(ids, TARGET_SIZE))


def make_tokens(generator, lengths, vocab_size):
    """Documents of the given byte lengths, cut at random, with begin and end tokens, some boundaries unproven."""
    ids, boundaries, offsets = [], [], [0]
    for length in lengths:
        cuts = [b for b in range(1, length) if torch.rand((), generator=generator) < 0.6] + [length] * (length > 0)
        cuts = [NO_BOUNDARY if torch.rand((), generator=generator) < 0.1 else b for b in cuts]
        boundaries += [0, *cuts, NO_BOUNDARY]
        ids += [0, *torch.randint(3, vocab_size, (len(cuts),), generator=generator).tolist(), 1]
        offsets.append(len(ids))
    return Tokens(torch.tensor(ids), torch.tensor(boundaries), torch.tensor(offsets))


def make_scored(generator, tokens, dtype=torch.float64, width=6):
    """Rows of mass one in random shares of kept ids, tail and unknown; some rows narrower, one absent."""
    rows = len(tokens.ids)
    widths = torch.randint(1, width + 1, (rows,), generator=generator)
    ids, logprobs, tail, unknown = [], [], [], []
    for row, kept in enumerate(widths.tolist()):
        if row == 3:
            widths[row] = 0
            tail.append(-INF)
            unknown.append(0.0)
            continue
        shares = torch.randn(kept + 2, generator=generator, dtype=torch.float64).log_softmax(0)
        ids += torch.randperm(SOURCE_SIZE, generator=generator)[:kept].tolist()
        logprobs += shares[:kept].tolist()
        tail.append(shares[kept].item())
        unknown.append(shares[kept + 1].item())
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), widths.cumsum(0)])
    values = [torch.tensor(v, dtype=torch.float64).to(dtype) for v in (logprobs, tail, unknown)]
    dist = TokenDist(offsets, torch.tensor(ids), *values, SOURCE_SIZE)
    nll = torch.rand(rows, generator=generator) * 3
    nll[tokens.doc_offsets[1:] - 1] = torch.nan
    return Scored(tokens, dist, nll)


def make_case(seed, lengths=(9, 0, 14, 1, 30), **pair_options):
    generator = torch.Generator().manual_seed(seed)
    pair = make_pair(generator, **pair_options)
    source = make_scored(generator, make_tokens(generator, lengths, SOURCE_SIZE))
    return source, make_tokens(generator, lengths, TARGET_SIZE), pair


def entries_of(dist, row):
    start, stop = dist.row_offsets[row : row + 2].tolist()
    return dict(zip(dist.ids[start:stop].tolist(), dist.logprobs[start:stop].exp().tolist(), strict=True))


def define_rows(source, target):
    """Common rows by loops: document and boundary of every source row, looked up."""
    place = {}
    for doc in range(source.num_docs):
        for row in range(source.doc_offsets[doc], source.doc_offsets[doc + 1]):
            place[doc, source.boundaries[row].item()] = row
    rows = []
    for doc in range(target.num_docs):
        for row in range(target.doc_offsets[doc], target.doc_offsets[doc + 1]):
            boundary = target.boundaries[row].item()
            rows.append(-1 if boundary == NO_BOUNDARY else place.get((doc, boundary), -1))
    return rows


def define_row(dist, row, pair, strict):
    """Probabilities of one projected row by loops over the vocabulary: kept, tail, unknown."""
    if row < 0:
        return {}, 0.0, 1.0
    source, to = entries_of(dist, row), pair.vocab_map.ids.tolist()
    kept, tail, unknown = {}, math.exp(dist.tail_logprob[row]), math.exp(dist.unknown_logprob[row])
    for token in source:
        if to[token] >= 0:
            kept[to[token]] = kept.get(to[token], 0.0) + source[token]
    for token in set(range(pair.source.size)) - set(source):
        if strict and (to[token] in kept or (to[token] < 0 and pair.source.surfaces[token])):
            tail, unknown = 0.0, unknown + tail
    for token in source:
        if to[token] < 0 and pair.source.surfaces[token]:
            unknown += source[token]
        elif to[token] < 0:
            tail += source[token]
    return kept, tail, unknown if kept or tail else 1.0


@pytest.mark.parametrize("seed", range(8))
def test_common_rows_follow_the_definition_by_loops(seed):
    source, target, _ = make_case(seed)
    assert common_rows(source.tokens, target).tolist() == define_rows(source.tokens, target)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("homeless", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_projected_rows_follow_the_definition_by_loops(seed, tail, homeless):
    source, target, pair = make_case(seed, homeless=homeless)
    dist = ByteBoundary(tail=tail)(source, target, pair).dist
    assert (dist.num_rows, dist.vocab_size) == (len(target.ids), TARGET_SIZE)
    for row, source_row in enumerate(define_rows(source.tokens, target)):
        kept, tail_mass, unknown = define_row(source.dist, source_row, pair, tail == "strict")
        assert entries_of(dist, row) == pytest.approx(kept, abs=1e-12)
        assert dist.tail_logprob[row].exp().item() == pytest.approx(tail_mass, abs=1e-12)
        assert dist.unknown_logprob[row].exp().item() == pytest.approx(unknown, abs=1e-12)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("seed", range(6))
def test_mass_is_conserved(seed, tail):
    dist = ByteBoundary(tail=tail)(*make_case(seed)).dist
    kept = torch.zeros(dist.num_rows, dtype=torch.float64).index_add_(0, dist.row_of_entry, dist.logprobs.exp())
    total = kept + dist.tail_logprob.exp() + dist.unknown_logprob.exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_ids_rise_within_a_row():
    dist = ByteBoundary()(*make_case(0)).dist
    same_row = dist.row_of_entry.diff() == 0
    assert same_row.any()
    assert (dist.ids.diff()[same_row] > 0).all()


def test_a_model_aligned_with_itself_keeps_its_rows():
    source, _, _ = make_case(1)
    vocabulary = make_vocabulary(SOURCE_SIZE)
    pair = Pair(vocabulary, vocabulary, VocabMap(torch.arange(SOURCE_SIZE), SOURCE_SIZE))
    for tail in TAILS:
        dist = ByteBoundary(tail=tail)(source, source.tokens, pair).dist
        for row, boundary in enumerate(source.tokens.boundaries.tolist()):
            expected = entries_of(source.dist, row) if boundary != NO_BOUNDARY else {}
            assert entries_of(dist, row) == pytest.approx(expected, abs=1e-15)
        provable = source.tokens.boundaries != NO_BOUNDARY
        torch.testing.assert_close(dist.tail_logprob[provable], source.dist.tail_logprob[provable])


@pytest.mark.parametrize("seed", range(4))
def test_spans_add_up_to_what_the_source_spent(seed):
    source, target, pair = make_case(seed)
    aligned = ByteBoundary()(source, target, pair)
    rows = define_rows(source.tokens, target)
    for doc in range(target.num_docs):
        previous = None
        for row in range(target.doc_offsets[doc], target.doc_offsets[doc + 1]):
            if rows[row] < 0:
                assert aligned.span_nll[row].isnan()
                assert aligned.span_tokens[row] == 0
                continue
            spent = 0.0 if previous is None else source.nll[previous : rows[row]].double().sum().item()
            assert aligned.span_nll[row].item() == pytest.approx(spent, abs=1e-6)
            assert aligned.span_tokens[row] == (0 if previous is None else rows[row] - previous)
            previous = rows[row]


@pytest.mark.parametrize(("prefixes", "present"), [((0, 0), 1), ((1, 1), 1), ((1, 0), 0), ((0, 1), 0)])
def test_the_first_row_is_comparable_only_if_both_await_a_prefix_space_or_neither(prefixes, present):
    source, target, pair = make_case(2, prefixes=tuple(map(bool, prefixes)))
    aligned = ByteBoundary()(source, target, pair)
    begins = target.boundaries == 0
    assert aligned.dist.present[begins].all() == present
    assert (aligned.span_nll[begins] == 0).all()
    assert aligned.dist.present[target.boundaries > 0].any()


def test_a_prefix_space_that_was_read_is_no_longer_awaited():
    tokens = Tokens(torch.tensor([0, 4, 5, 1]), torch.tensor([NO_BOUNDARY, 0, 1, NO_BOUNDARY]), torch.tensor([0, 4]))
    bare = Tokens(torch.tensor([0, 5, 1]), torch.tensor([0, 1, NO_BOUNDARY]), torch.tensor([0, 3]))
    generator = torch.Generator().manual_seed(0)
    source = make_scored(generator, tokens)
    aligned = ByteBoundary()(source, bare, make_pair(generator, prefixes=(True, False)))
    assert aligned.dist.present[0]


@pytest.mark.parametrize(
    ("ids", "ends", "present"),
    [
        ((0, 4), (0, 1), False),  # a plain document, and the source is going to read a space
        ((0, 2, 5), (NO_BOUNDARY, 0, 1), True),  # a turn, cut without one
        ((0, 2, 5), (NO_BOUNDARY, 0, NO_BOUNDARY), True),  # a turn of one token: the next turn begins where it ends
        ((0, 2, 4), (NO_BOUNDARY, 0, 1), False),  # two tokens begin this plain document
    ],
)
def test_no_prefix_space_is_awaited_behind_what_a_template_says(ids, ends, present):
    generator = torch.Generator().manual_seed(0)
    pair = make_pair(generator, prefixes=(True, False))
    surfaces = [*pair.source.surfaces[:4], b" b", *pair.source.surfaces[5:]]
    pair = replace(pair, source=replace(pair.source, surfaces=tuple(surfaces)))
    source = make_scored(generator, Tokens(torch.tensor(ids), torch.tensor(ends), torch.tensor([0, len(ids)])))
    target = Tokens(torch.tensor([0, 5]), torch.tensor([0, 1]), torch.tensor([0, 2]))
    assert ByteBoundary()(source, target, pair).dist.present.tolist() == [present, 1 in ends]


@pytest.mark.parametrize("tail", TAILS)
def test_a_tail_is_certain_when_nothing_outside_maps_to_a_kept_id(tail):
    vocabularies = make_vocabulary(5), make_vocabulary(5)
    tokens = Tokens(torch.tensor([0]), torch.tensor([0]), torch.tensor([0, 1]))
    half = torch.tensor([0.5]).log()
    dist = TokenDist(torch.tensor([0, 1]), torch.tensor([3]), half, half, torch.tensor([-INF]), 5)
    scored = Scored(tokens, dist, torch.tensor([torch.nan]))
    apart = Pair(*vocabularies, VocabMap(torch.tensor([-1, 1, -1, 3, 4]), 5))
    together = Pair(*vocabularies, VocabMap(torch.tensor([-1, 1, -1, 3, 3]), 5))
    assert ByteBoundary(tail=tail)(scored, tokens, apart).dist.tail_logprob.tolist() == half.tolist()
    expected = -INF if tail == "strict" else half.item()
    assert ByteBoundary(tail=tail)(scored, tokens, together).dist.tail_logprob.item() == expected


def test_a_row_left_without_knowledge_is_absent():
    source, target, pair = make_case(3)
    nowhere = Pair(pair.source, pair.target, VocabMap(torch.full((SOURCE_SIZE,), -1), TARGET_SIZE))
    no_tail = replace(source.dist, tail_logprob=torch.full_like(source.dist.tail_logprob, -INF))
    only_bytes = replace(no_tail, ids=no_tail.ids.clamp(min=3))
    aligned = ByteBoundary()(replace(source, dist=only_bytes), target, nowhere)
    assert not aligned.dist.present.any()
    assert (aligned.dist.unknown_logprob == 0).all()


@pytest.mark.parametrize(
    ("dtype", "expected", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float32, 1e-5),
        (torch.float16, torch.float32, 5e-3),
        (torch.bfloat16, torch.float32, 4e-2),
    ],
)
def test_results_are_at_least_fp32(dtype, expected, tolerance):
    source, target, pair = make_case(4)
    exact = ByteBoundary()(source, target, pair).dist
    values = {n: getattr(source.dist, n).to(dtype) for n in ("logprobs", "tail_logprob", "unknown_logprob")}
    rounded = replace(source.dist, **values, ids=source.dist.ids.int())
    aligned = ByteBoundary()(replace(source, dist=rounded), target, pair)
    assert aligned.dist.logprobs.dtype == aligned.dist.tail_logprob.dtype == expected
    assert aligned.span_nll.dtype == torch.float32
    assert aligned.dist.ids.dtype == torch.int64
    torch.testing.assert_close(aligned.dist.logprobs.double(), exact.logprobs, rtol=0, atol=tolerance * 4)


def test_tiny_probabilities_survive_a_collision():
    vocabulary = make_vocabulary(5)
    tokens = Tokens(torch.tensor([0]), torch.tensor([0]), torch.tensor([0, 1]))
    logprobs = torch.tensor([-900.0, -900.0], dtype=torch.float64)
    dist = TokenDist(
        torch.tensor([0, 2]), torch.tensor([3, 4]), logprobs, torch.zeros(1).double(), torch.tensor([-INF]).double(), 5
    )
    pair = Pair(vocabulary, vocabulary, VocabMap(torch.tensor([-1, 1, -1, 3, 3]), 5))
    aligned = ByteBoundary()(Scored(tokens, dist, torch.tensor([torch.nan])), tokens, pair)
    assert aligned.dist.logprobs.tolist() == pytest.approx([-900 + math.log(2)])


def test_aligning_twice_gives_the_same_bits():
    first, again = ByteBoundary()(*make_case(5)), ByteBoundary()(*make_case(5))
    assert torch.equal(first.dist.ids, again.dist.ids)
    assert torch.equal(first.dist.logprobs, again.dist.logprobs)
    torch.testing.assert_close(first.span_nll, again.span_nll, rtol=0, atol=0, equal_nan=True)


def test_facts_count_rows_and_mass():
    source, target, pair = make_case(6)
    aligned = ByteBoundary()(source, target, pair)
    facts = summarize(aligned)
    assert facts.rows == len(target.ids)
    assert summarize(aligned, aligned.dist.present) == replace(facts, rows=facts.present)
    assert 0 < facts.present == int(aligned.dist.present.sum()) < facts.rows
    assert facts.kept + facts.tail + facts.unknown == pytest.approx(1, abs=1e-9)


def test_an_empty_shard_aligns():
    empty = Tokens(*(torch.zeros(n, dtype=torch.int64) for n in (0, 0, 1)))
    generator = torch.Generator().manual_seed(0)
    pair = make_pair(generator)
    dist = TokenDist(torch.tensor([0]), torch.zeros(0, dtype=torch.int64), *torch.zeros(3, 0), SOURCE_SIZE)
    aligned = ByteBoundary()(Scored(empty, dist, torch.zeros(0)), empty, pair)
    assert summarize(aligned).rows == summarize(aligned).present == 0
    assert aligned.span_nll.shape == (0,)


def test_a_source_without_tokens_leaves_every_row_absent():
    generator = torch.Generator().manual_seed(0)
    nothing = Tokens(torch.zeros(0).long(), torch.zeros(0).long(), torch.tensor([0, 0]))
    dist = TokenDist(torch.tensor([0]), torch.zeros(0).long(), *torch.zeros(3, 0), SOURCE_SIZE)
    target = make_tokens(generator, (8,), TARGET_SIZE)
    aligned = ByteBoundary()(Scored(nothing, dist, torch.zeros(0)), target, make_pair(generator))
    assert not aligned.dist.present.any()
    assert aligned.span_nll.isnan().all()


def test_different_documents_are_refused():
    source, _, pair = make_case(7)
    other = make_tokens(torch.Generator().manual_seed(0), (9, 4), TARGET_SIZE)
    with pytest.raises(ValueError, match="found 5 and 2"):
        ByteBoundary()(source, other, pair)


@pytest.mark.parametrize("boundaries", [[0, 3, 3], [0, 3, 2]])
def test_boundaries_that_do_not_rise_are_refused(boundaries):
    tokens = Tokens(torch.tensor([0, 3, 4]), torch.tensor(boundaries), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="token 2 ends at"):
        common_rows(tokens, tokens)


@pytest.mark.parametrize("bad", [torch.nan, INF])
def test_a_label_without_a_finite_cost_is_refused(bad):
    source, target, pair = make_case(0)
    nll = source.nll.clone()
    nll[1] = bad
    with pytest.raises(ValueError, match=f"1 of {len(nll)}"):
        ByteBoundary()(replace(source, nll=nll), target, pair)


def test_a_map_of_other_vocabularies_is_refused():
    with pytest.raises(ValueError, match="from 23 to 11 ids, but found 4 to 9"):
        Pair(make_vocabulary(23), make_vocabulary(11), VocabMap(torch.zeros(4).long(), 9))


def test_a_strategy_survives_its_json():
    strategy = ByteBoundary(tail="strict")
    assert TypeAdapter(AlignmentStrategy).validate_json(strategy.model_dump_json()) == strategy


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_does_not_change_the_result():
    source, target, pair = make_case(0)
    there = Scored(
        Tokens(*(t.cuda() for t in (source.tokens.ids, source.tokens.boundaries, source.tokens.doc_offsets))),
        source.dist.to("cuda"),
        source.nll.cuda(),
    )
    target_there = Tokens(*(t.cuda() for t in (target.ids, target.boundaries, target.doc_offsets)))
    here, moved = ByteBoundary()(source, target, pair), ByteBoundary()(there, target_there, pair)
    assert moved.dist.ids.device.type == "cuda"
    torch.testing.assert_close(moved.dist.logprobs.cpu(), here.dist.logprobs)
    torch.testing.assert_close(moved.span_nll.cpu(), here.span_nll, equal_nan=True)
