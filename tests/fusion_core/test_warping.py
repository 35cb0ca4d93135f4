"""Rows follow the warped path where the tokens are the same; every quirk of the original is an option of its own."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fusion_core.alignment import AlignmentStrategy, ByteBoundary, ExactDTW, MinEditDTW, Pair
from fusion_core.alignment.warping import match_tokens, token_sequences
from fusion_core.dtw import warp
from fusion_core.min_edit import MinEdit
from fusion_core.types import NO_BOUNDARY, Scored, TokenDist, Tokens, VocabMap
from fusion_core.vocabulary import Vocabulary

INF = math.inf
SOURCE = ("<eos>", "a", "b", "ab", "Ġa", "Ġb", "Ġab", "Ġabc", "Ġ")
TARGET = ("</s>", "▁", "a", "b", "bc", "▁a", "▁ab", "▁b", "abc")
DOCS = st.lists(st.tuples(st.lists(st.integers(0, 8), max_size=7), st.lists(st.integers(0, 8), max_size=7)), max_size=4)


def vocabulary(pieces, marker):
    surfaces = (b"", *(piece.replace(marker, " ").encode() for piece in pieces[1:]))
    return Vocabulary(surfaces, {"eos": 0}, False, False, pieces, marker)


def make_pair(mapping=MinEdit()):
    source, target = vocabulary(SOURCE, "Ġ"), vocabulary(TARGET, "▁")
    return Pair(source, target, mapping(source, target))


def tokens_of(documents):
    offsets = [0]
    for document in documents:
        offsets.append(offsets[-1] + len(document))
    ids = torch.tensor([token for document in documents for token in document], dtype=torch.int64)
    return Tokens(ids, torch.full_like(ids, NO_BOUNDARY), torch.tensor(offsets))


def score(tokens, seed=0, width=4, dtype=torch.float64):
    """Rows of `width` candidates, tail and unknown, in falling order."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(tokens.ids)
    shares = torch.randn(rows, width + 2, generator=generator, dtype=torch.float64).log_softmax(1)
    kept = shares[:, :width].sort(1, descending=True).values
    ids = [torch.randperm(len(SOURCE), generator=generator)[:width] for _ in range(rows)]
    dist = TokenDist(
        torch.arange(rows + 1) * width,
        torch.cat(ids) if ids else torch.zeros(0, dtype=torch.int64),
        kept.flatten().to(dtype),
        shares[:, width].to(dtype),
        shares[:, width + 1].to(dtype),
        len(SOURCE),
    )
    return Scored(tokens, dist, torch.zeros(rows))


def case(source_docs, target_docs, **options):
    return score(tokens_of(source_docs), **options), tokens_of(target_docs)


def entries_of(dist, row):
    start, stop = dist.row_offsets[row : row + 2].tolist()
    return list(zip(dist.ids[start:stop].tolist(), dist.logprobs[start:stop].exp().tolist(), strict=True))


def define_rows(source, target, pair, through_map, first_marker):
    """The source row of each target token, or -1, by loops over the path."""
    path = warp(token_sequences(source, pair.source), token_sequences(target, pair.target))
    steps = list(zip(path.source.tolist(), path.target.tolist(), strict=True))
    matches = Counter(j for _, j in steps)
    spelled = [piece.replace("Ġ", "▁") for piece in SOURCE]
    rows = [-1] * len(target.ids)
    for i, j in steps:
        ours, theirs = int(source.ids[i]), int(target.ids[j])
        text, doc = spelled[ours], int(target.doc_of_token[j])
        earlier = target.ids[int(target.doc_offsets[doc]) : j].tolist()
        is_first = theirs != 0 and all(token == 0 for token in earlier)
        if first_marker and is_first and TARGET[theirs].startswith("▁") and not text.startswith("▁"):
            text = "▁" + text
        same = spelled.index(text) if text in spelled else None
        mapped = through_map and same is not None and int(pair.vocab_map.ids[same]) == theirs
        if matches[j] == 1 and (text == TARGET[theirs] or mapped):
            rows[j] = i
    return rows


def define_row(dist, row, pair):
    """Kept, tail and unknown of one row on the target's ids, collisions summed."""
    if row < 0:
        return {}, 0.0, 1.0
    kept, tail, unknown = Counter(), math.exp(dist.tail_logprob[row]), math.exp(dist.unknown_logprob[row])
    for token, prob in entries_of(dist, row):
        mapped = int(pair.vocab_map.ids[token])
        if mapped >= 0:
            kept[mapped] += prob
        elif pair.source.surfaces[token]:
            unknown += prob
        else:
            tail += prob
    return kept, tail, unknown


def define_original_row(dist, row, pair, read):
    """The first of colliding candidates, scaled up to one; all on the token just read where there is no row."""
    if row < 0:
        return [(read, 1.0)]
    kept = {}
    for token, prob in entries_of(dist, row):
        mapped = int(pair.vocab_map.ids[token])
        if mapped >= 0 and mapped not in kept:
            kept[mapped] = prob
    return [(token, prob / sum(kept.values())) for token, prob in kept.items()]


STRATEGIES = [(ExactDTW, MinEdit(max_distance=0)), (MinEditDTW, MinEdit()), (MinEditDTW, MinEdit(max_distance=1))]


@pytest.mark.parametrize("first_marker", [False, True])
@pytest.mark.parametrize(("strategy", "mapping"), STRATEGIES)
@settings(max_examples=40, deadline=None)
@given(documents=DOCS)
def test_rows_follow_the_definition(strategy, mapping, first_marker, documents):
    source, target = case([s for s, _ in documents], [t for _, t in documents])
    pair = make_pair(mapping)
    rows = define_rows(source.tokens, target, pair, strategy is MinEditDTW, first_marker)
    found = strategy(first_marker=first_marker)(source, target, pair).dist
    for place, row in enumerate(rows):
        kept, tail, unknown = define_row(source.dist, row, pair)
        absent = not kept and not tail
        assert dict(entries_of(found, place)) == pytest.approx(dict(kept), abs=1e-12)
        assert math.exp(found.tail_logprob[place]) == pytest.approx(tail, abs=1e-12)
        assert math.exp(found.unknown_logprob[place]) == pytest.approx(1.0 if absent else unknown, abs=1e-12)


@pytest.mark.parametrize(("strategy", "mapping"), STRATEGIES)
@settings(max_examples=40, deadline=None)
@given(documents=DOCS)
def test_reference_rows_follow_the_original(strategy, mapping, documents):
    source, target = case([s for s, _ in documents], [t for _, t in documents])
    pair = make_pair(mapping)
    rows = define_rows(source.tokens, target, pair, strategy is MinEditDTW, first_marker=False)
    found = strategy(reference=True)(source, target, pair).dist
    assert not bool((found.tail_logprob > -INF).any())
    for place, row in enumerate(rows):
        expected = define_original_row(source.dist, row, pair, int(target.ids[place]))
        ours = entries_of(found, place)
        assert [token for token, _ in ours] == [token for token, _ in expected]
        assert [prob for _, prob in ours] == pytest.approx([prob for _, prob in expected], abs=1e-12)
        assert bool(found.present[place]) == bool(expected)


def test_equal_tokens_pass_on_their_row_and_others_none():
    source, target = case([[6, 2]], [[6, 3]])  # Ġab b -> ▁ab b
    found = MinEditDTW()(source, target, make_pair(MinEdit(max_distance=0))).dist
    assert found.present.tolist() == [True, True]
    source, target = case([[6, 2]], [[5, 3, 3]])  # Ġab b -> ▁a b b
    found = ExactDTW()(source, target, make_pair(MinEdit(max_distance=0))).dist
    assert found.present[0].item() is False


def test_a_target_token_matched_twice_has_no_match():
    source, target = case([[1, 1]], [[2]])
    assert match_tokens(source.tokens, target, make_pair()).tolist() == [-1]


def test_a_row_without_a_match_may_teach_its_label():
    source, target = case([[7], [1]], [[2, 3], [4]])
    found = ExactDTW(unmatched="label")(source, target, make_pair()).dist
    assert entries_of(found, 0) == [(3, 1.0)]
    assert found.present.tolist() == [True, False, False]
    assert found.unknown_logprob[0] == -INF


def test_the_first_marker_is_lent_once_per_text():
    source, target = case([[1, 1], [0, 1]], [[5, 5], [0, 5]])  # a a -> ▁a ▁a; <eos> a -> </s> ▁a
    pair = make_pair(MinEdit(max_distance=0))
    assert ExactDTW()(source, target, pair).dist.present.tolist() == [False] * 4
    assert ExactDTW(first_marker=True)(source, target, pair).dist.present.tolist() == [True, False, False, True]


@pytest.mark.parametrize("strategy", [ExactDTW(), MinEditDTW(), MinEditDTW(reference=True)])
def test_what_the_source_spent_is_that_of_common_boundaries(strategy):
    source, target = case([[1, 2, 0]], [[2, 3, 0]])
    source = Scored(
        Tokens(source.tokens.ids, torch.tensor([1, 2, -1]), source.tokens.doc_offsets),
        source.dist,
        torch.tensor([0.5, 2.0, torch.nan]),
    )
    target = Tokens(target.ids, torch.tensor([1, 2, -1]), target.doc_offsets)
    found, expected = (s(source, target, make_pair()) for s in (strategy, ByteBoundary()))
    assert torch.equal(found.span_nll.nan_to_num(-1), expected.span_nll.nan_to_num(-1))
    assert torch.equal(found.span_tokens, expected.span_tokens)


@pytest.mark.parametrize("strategy", [ExactDTW(), MinEditDTW(), MinEditDTW(reference=True, first_marker=True)])
@pytest.mark.parametrize("documents", [[], [([], [])], [([1], [])], [([], [2])]])
def test_empty_documents_have_no_rows_to_give(strategy, documents):
    source, target = case([s for s, _ in documents], [t for _, t in documents])
    found = strategy(source, target, make_pair()).dist
    assert found.num_rows == len(target.ids)
    assert not strategy.reference or all(entries_of(found, i) == [(int(t), 1.0)] for i, t in enumerate(target.ids))


@pytest.mark.parametrize(("given_dtype", "expected"), [(torch.float16, torch.float32), (torch.float64, torch.float64)])
@pytest.mark.parametrize("strategy", [MinEditDTW(), MinEditDTW(reference=True)])
def test_logprobs_are_at_least_fp32(strategy, given_dtype, expected):
    source, target = case([[1, 2, 0]], [[2, 3, 0]], dtype=given_dtype)
    assert strategy(source, target, make_pair()).dist.logprobs.dtype == expected


def test_another_number_of_documents_is_refused():
    source, target = case([[1], [2]], [[2]])
    with pytest.raises(ValueError, match="found 2 and 1"):
        MinEditDTW()(source, target, make_pair())


def test_a_vocabulary_without_pieces_is_refused():
    bare = Vocabulary((b"", b"a"), {}, False, False)
    source, target = tokens_of([[1]]), tokens_of([[1]])
    with pytest.raises(ValueError, match="found 0 pieces for 2 ids"):
        match_tokens(source, target, Pair(bare, bare, VocabMap(torch.tensor([0, 1]), 2)))


@pytest.mark.parametrize("strategy", [ExactDTW(reference=True), MinEditDTW(unmatched="label", first_marker=True)])
def test_kind_chooses_the_strategy(strategy):
    adapter = TypeAdapter(AlignmentStrategy)
    assert adapter.validate_json(strategy.model_dump_json()) == strategy


def test_the_originals_rows_have_no_labels():
    with pytest.raises(ValidationError, match="found unmatched: label"):
        MinEditDTW(reference=True, unmatched="label")
