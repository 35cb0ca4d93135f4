"""Source tokens go to the target token that is spelled most like them, special tokens by their role."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fusion_core.edit_distance import edit_distances
from fusion_core.min_edit import CoOccurrence, MinEdit
from fusion_core.pair_counts import PairCounts, sum_counts
from fusion_core.vocab_mapping import VocabMapping
from fusion_core.vocabulary import Vocabulary

PIECES = st.lists(st.text("Ġab▁c", min_size=1, max_size=5), max_size=12, unique=True)


def vocabulary(*pieces, marker="", special=(), **roles):
    surfaces = [None if piece is None else b"" if piece in special else piece.encode() for piece in pieces]
    return Vocabulary(tuple(surfaces), roles, False, False, pieces, marker)


def define_map(source, target):
    """Per source piece the first target piece of least distance, by the table of all distances."""
    asked = [piece.replace("Ġ", "▁") for piece in source]
    if not target:
        return [-1] * len(asked)
    return [row.index(min(row)) for row in edit_distances(asked, target).tolist()]


def count_pairs(pairs):
    columns = torch.tensor([[*pair, count] for pair, count in pairs.items()], dtype=torch.int64).reshape(-1, 3)
    return PairCounts.of(*columns.unbind(1))


@settings(deadline=None)
@given(PIECES, PIECES)
def test_the_map_follows_the_definition(source, target):
    found = MinEdit()(vocabulary(*source, marker="Ġ"), vocabulary(*target, marker="▁"))
    assert found.ids.tolist() == define_map(source, target)
    assert found.target_size == len(target)


def test_of_equally_near_tokens_the_lowest_id_is_taken():
    assert MinEdit()(vocabulary("ab"), vocabulary("zz", "aq", "qb", "b")).ids.tolist() == [1]


def test_the_targets_marker_replaces_the_sources():
    source = vocabulary("Ġdog", "dog", marker="Ġ")
    assert MinEdit()(source, vocabulary("dog", "▁dog", marker="▁")).ids.tolist() == [1, 0]
    assert MinEdit()(source, vocabulary("dogs", "dog")).ids.tolist() == [1, 1]


def test_special_tokens_go_by_role_and_are_no_tokens_target():
    source = vocabulary("<|end|>", "<|pad|>", "<s", special=("<|end|>", "<|pad|>"), eos=0, pad=1)
    target = vocabulary("<s>", "</s>", "s", special=("<s>", "</s>"), bos=0, eos=1)
    assert MinEdit()(source, target).ids.tolist() == [1, -1, 2]


def test_in_the_original_special_tokens_are_strings_like_others():
    source = vocabulary("<|end|>", "<s", special=("<|end|>",), eos=0)
    target = vocabulary("<s>", "</s>", "bend", special=("<s>", "</s>"), bos=0, eos=1)
    assert MinEdit(reference=True)(source, target).ids.tolist() == [2, 0]


def test_tokens_too_far_from_every_target_go_nowhere():
    source, target = vocabulary("abc", "abd", "xyz"), vocabulary("abc")
    assert MinEdit(max_distance=0)(source, target).ids.tolist() == [0, -1, -1]
    assert MinEdit(max_distance=1)(source, target).ids.tolist() == [0, 0, -1]


def test_unused_ids_go_nowhere_and_nothing_goes_to_them():
    assert MinEdit(reference=True)(vocabulary("a", None), vocabulary(None, "b")).ids.tolist() == [1, -1]


def test_a_vocabulary_without_pieces_is_refused():
    bare = Vocabulary((b"a", b"b"), {}, False, False)
    with pytest.raises(ValueError, match="found 0 pieces for 2 ids"):
        MinEdit()(bare, vocabulary("a"))
    with pytest.raises(ValueError, match="found 0 pieces for 2 ids"):
        MinEdit()(vocabulary("a"), bare)


@pytest.mark.parametrize(("source", "target"), [("exact_byte_level", "exact_metaspace"), ("unigram", "word_piece")])
def test_trained_vocabularies_map_to_the_nearest(tiny, source, target):
    ours, theirs = tiny[source].vocabulary, tiny[target].vocabulary
    marked = ours.pieces_marked(theirs.word_marker)
    takes_part = [i for i, surface in enumerate(theirs.surfaces) if surface]
    found = MinEdit()(ours, theirs).ids.tolist()
    for token, surface in enumerate(ours.surfaces):
        if surface:
            distances = edit_distances([marked[token]], [theirs.pieces[i] for i in takes_part])[0]
            assert found[token] == takes_part[int(distances.argmin())]


def test_kind_chooses_the_mapping():
    adapter = TypeAdapter(VocabMapping)
    assert adapter.validate_python({"kind": "min_edit", "max_distance": 2}) == MinEdit(max_distance=2)
    with pytest.raises(ValidationError, match="max_distance"):
        adapter.validate_python({"kind": "min_edit", "max_distance": -1})


def test_pieces_survive_the_vocabularys_json(tiny):
    for tokenizer in tiny.values():
        assert Vocabulary.from_json(tokenizer.vocabulary.to_json()) == tokenizer.vocabulary


@pytest.mark.parametrize(
    ("kind", "marker"),
    [("exact_byte_level", "Ġ"), ("exact_metaspace", "▁"), ("exact_prepend", "▁"), ("word_piece", "")],
)
def test_the_word_marker_is_what_the_pieces_hold_for_a_space(tiny, kind, marker):
    vocabulary = tiny[kind].vocabulary
    assert vocabulary.word_marker == marker
    words = [
        p for p, s in zip(vocabulary.pieces, vocabulary.surfaces, strict=True) if s and s[:1] == b" " and s.strip()
    ]
    assert words
    assert all(piece.startswith(marker) for piece in words)


def test_one_piece_per_id_is_demanded():
    with pytest.raises(ValueError, match="found 1 pieces for 2 surfaces"):
        Vocabulary((b"a", b"b"), {}, False, False, ("a",))


@settings(max_examples=50, deadline=None)
@given(PIECES.filter(len), PIECES.filter(len), st.data())
def test_of_the_nearest_the_most_seen_is_taken(source, target, data):
    place = st.tuples(st.integers(0, len(source) - 1), st.integers(0, len(target) - 1))
    pairs = data.draw(st.dictionaries(place, st.integers(1, 3), max_size=20))
    ours, theirs = vocabulary(*source, marker="Ġ"), vocabulary(*target, marker="▁")
    found = CoOccurrence()(ours, theirs, None, count_pairs(pairs)).ids.tolist()
    asked = [piece.replace("Ġ", "▁") for piece in source]
    for token, distances in enumerate(edit_distances(asked, target).tolist()):
        nearest = [t for t, d in enumerate(distances) if d == min(distances)]
        assert found[token] == min(nearest, key=lambda t: (-pairs.get((token, t), 0), t))


def test_a_far_token_is_not_taken_however_often_it_was_seen():
    source, target = vocabulary("ab"), vocabulary("zzz", "ax", "ay")
    assert CoOccurrence()(source, target, None, count_pairs({(0, 0): 9, (0, 2): 1})).ids.tolist() == [2]
    assert CoOccurrence(max_distance=0)(source, target, None, count_pairs({(0, 2): 1})).ids.tolist() == [-1]


def test_special_tokens_keep_their_role_whatever_was_counted():
    source, target = vocabulary("</s>", "a", special=["</s>"], eos=0), vocabulary("b", "<e>", special=["<e>"], eos=1)
    assert CoOccurrence()(source, target, None, count_pairs({(0, 0): 9, (1, 1): 9})).ids.tolist() == [1, 0]


def test_without_counts_the_refinement_is_what_it_refines(tiny):
    ours, theirs = tiny["exact_byte_level"].vocabulary, tiny["exact_metaspace"].vocabulary
    refined = CoOccurrence()(ours, theirs, None, sum_counts([]))
    assert torch.equal(refined.ids, MinEdit()(ours, theirs).ids)
