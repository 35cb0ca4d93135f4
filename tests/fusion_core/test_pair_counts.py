"""A pair is counted where both tokens begin at one byte of one document, and counts add up over shards."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_core.alignment import tally_pairs
from fusion_core.pair_counts import PairCounts, sum_counts
from fusion_core.types import NO_BOUNDARY, Tokens
from fusion_core.vocabulary import Vocabulary


def make_tokens(documents):
    """A shard from one list of (id, boundary) per document."""
    flat = [token for document in documents for token in document]
    ids, boundaries = ([token[place] for token in flat] for place in (0, 1))
    offsets = torch.tensor([0, *map(len, documents)]).cumsum(0)
    return Tokens(torch.tensor(ids, dtype=torch.int64), torch.tensor(boundaries, dtype=torch.int64), offsets)


def make_counts(pairs):
    columns = torch.tensor([[*pair, count] for pair, count in pairs.items()], dtype=torch.int64).reshape(-1, 3)
    return PairCounts.of(*columns.unbind(1))


def as_dict(counts):
    pairs = zip(counts.source_ids.tolist(), counts.target_ids.tolist(), strict=True)
    return dict(zip(pairs, counts.counts.tolist(), strict=True))


def define_pairs(source_documents, target_documents):
    """Every source token against every target token of its document, by what a pair is."""
    found = Counter()
    for ours, theirs in zip(source_documents, target_documents, strict=True):
        for (_, our_start), (our_id, our_end) in itertools.pairwise(ours):
            for (_, their_start), (their_id, their_end) in itertools.pairwise(theirs):
                proven = NO_BOUNDARY not in (our_start, our_end, their_end)
                if proven and our_start == their_start and our_start > 0:
                    found[our_id, their_id] += 1
    return found


@st.composite
def cut_documents(draw, lengths, begins):
    """Documents of the given bytes, cut at random, some boundaries unproven, with or without a token that begins."""
    documents = []
    for length in lengths:
        ends = sorted(draw(st.sets(st.integers(1, length), max_size=length))) if length else []
        ends = [end if draw(st.integers(0, 5)) else NO_BOUNDARY for end in ends]
        tokens = [(draw(st.integers(0, 4)), end) for end in ends]
        documents.append([*([(9, 0)] if begins else []), *tokens, (8, NO_BOUNDARY)])
    return documents


LENGTHS = st.lists(st.integers(0, 8), max_size=5)
BOTH = LENGTHS.flatmap(
    lambda n: st.tuples(cut_documents(n, True), st.booleans().flatmap(lambda b: cut_documents(n, b)))
)


@settings(max_examples=50, deadline=None)
@given(BOTH)
def test_counts_follow_the_definition_by_loops(documents):
    assert as_dict(tally_pairs(*map(make_tokens, documents))) == define_pairs(*documents)


@settings(max_examples=50, deadline=None)
@given(BOTH)
def test_counts_of_shards_sum_to_the_counts_of_the_whole(documents):
    source, target = documents
    whole = tally_pairs(make_tokens(source), make_tokens(target))
    halves = [tally_pairs(make_tokens(source[i::2]), make_tokens(target[i::2])) for i in range(2)]
    assert as_dict(sum_counts(halves)) == as_dict(whole)
    assert all(torch.equal(getattr(sum_counts(halves), n), v) for n, v in vars(whole).items())


@settings(max_examples=50, deadline=None)
@given(BOTH)
def test_a_tokenizer_stands_in_its_own_place(documents):
    own = make_tokens(documents[0])
    found = tally_pairs(own, own)
    assert torch.equal(found.source_ids, found.target_ids)


def test_pairs_are_in_order_each_once():
    counts = PairCounts.of(torch.tensor([3, 1, 3, 1]), torch.tensor([0, 7, 0, 2]), torch.tensor([1, 2, 3, 4]))
    assert counts.source_ids.tolist() == [1, 1, 3]
    assert counts.target_ids.tolist() == [2, 7, 0]
    assert counts.counts.tolist() == [4, 2, 4]


def test_tokens_of_real_texts_begin_together(tiny):
    """The pairs spell texts from their starts on: one's bytes begin the other's."""
    texts = ["The quick brown fox, the lazy dog.", "def add(a, b): return a", "日本語 être señor", "", "x"]
    source, target = tiny["exact_byte_level"], tiny["exact_metaspace"]
    found = tally_pairs(source.read(texts)[0], target.read(texts)[0])
    assert len(found.counts) > 20
    for ours, theirs in as_dict(found):
        a, b = source.vocabulary.surfaces[ours], target.vocabulary.surfaces[theirs]
        assert a.startswith(b) or b.startswith(a)


def test_the_pair_seen_most_often_wins_and_of_equals_the_lowest_id():
    counts = make_counts({(0, 5): 1, (0, 6): 3, (2, 9): 2, (2, 4): 2, (2, 7): 1, (5, 0): 1})
    assert as_dict(counts.most_frequent()) == {(0, 6): 3, (2, 4): 2, (5, 0): 1}


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.tuples(st.integers(0, 4), st.integers(0, 4)), st.integers(1, 3)))
def test_totals_and_winners_follow_the_definition_by_loops(pairs):
    counts = make_counts(pairs)
    totals = Counter()
    for (ours, _), count in pairs.items():
        totals[ours] += count
    assert counts.source_totals().tolist() == [totals[ours] for ours, _ in as_dict(counts)]
    best = {ours: min((-n, t) for (s, t), n in pairs.items() if s == ours) for ours in totals}
    assert as_dict(counts.most_frequent()) == {(ours, t): -n for ours, (n, t) in best.items()}


def test_nothing_counted_is_no_pairs():
    assert as_dict(sum_counts([])) == {}
    assert as_dict(sum_counts([]).most_frequent()) == {}
    assert sum_counts([]).source_totals().tolist() == []
    assert as_dict(tally_pairs(make_tokens([]), make_tokens([]))) == {}


def test_large_ids_and_counts_keep_their_value():
    big = {(2**31 - 1, 2**31 - 1): 2**40, (0, 2**31 - 1): 1}
    assert as_dict(sum_counts([make_counts(big)] * 2)) == {pair: 2 * n for pair, n in big.items()}


def test_pairs_of_tokens_without_bytes_are_left_out():
    vocabulary = Vocabulary((b"", None, b"a"), {}, False, False)
    counts = make_counts({(0, 2): 1, (2, 0): 1, (1, 2): 1, (2, 1): 1, (2, 2): 4})
    assert as_dict(counts.with_bytes(vocabulary, vocabulary)) == {(2, 2): 4}


@pytest.mark.parametrize(("pair", "side"), [((3, 0), "source"), ((0, 3), "target"), ((-1, 0), "source")])
def test_ids_of_another_vocabulary_are_refused(pair, side):
    vocabulary = Vocabulary((b"a", b"b", b"c"), {}, False, False)
    counts = PairCounts(*(torch.tensor([value]) for value in (*pair, 1)))
    with pytest.raises(ValueError, match=rf"ids of the {side} must be in 0\.\.2.*found"):
        counts.with_bytes(vocabulary, vocabulary)


def test_shards_of_different_documents_are_refused():
    with pytest.raises(ValueError, match="same documents, but found 1 and 2"):
        tally_pairs(make_tokens([[(0, 1)]]), make_tokens([[(0, 1)], [(0, 1)]]))
