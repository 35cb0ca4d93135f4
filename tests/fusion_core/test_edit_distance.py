"""Distances are Levenshtein's, whatever the length and alphabet; the nearest string is the first of the nearest."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_core.edit_distance import (
    clear_pattern,
    distance_to_pattern,
    edit_distances,
    encode_strings,
    new_pattern_table,
    paired_distances,
    set_pattern,
)
from fusion_core.nearest_string import find_nearest

FEW_LETTERS = st.text("abc", max_size=12)
LONG = st.integers(0, 150).flatmap(lambda n: st.text("ab", min_size=n, max_size=n))


def define_distance(a, b):
    """Wagner and Fischer's table, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def define_nearest(query, candidates):
    distances = [define_distance(query, candidate) for candidate in candidates]
    return distances.index(min(distances)), min(distances)


def distance(a, b):
    return edit_distances([a], [b])[0, 0]


@settings(deadline=None)
@given(st.text(max_size=20), st.text(max_size=20))
def test_distance_follows_the_definition_for_any_text(a, b):
    assert distance(a, b) == define_distance(a, b)


@settings(deadline=None)
@given(FEW_LETTERS, FEW_LETTERS)
def test_distance_follows_the_definition_where_much_repeats(a, b):
    assert distance(a, b) == define_distance(a, b)


@settings(deadline=None)
@given(st.lists(st.tuples(FEW_LETTERS, FEW_LETTERS), max_size=8))
def test_distances_of_pairs_follow_the_definition(pairs):
    queries, texts = [a for a, _ in pairs], [b for _, b in pairs]
    assert paired_distances(queries, texts).tolist() == [define_distance(a, b) for a, b in pairs]


def test_pairs_have_two_sides():
    with pytest.raises(ValueError, match="found 1 for 2"):
        paired_distances(["a", "b"], ["c"])


@settings(max_examples=40, deadline=None)
@given(LONG, LONG)
def test_distance_follows_the_definition_for_several_words_per_string(a, b):
    assert distance(a, b) == define_distance(a, b)


@pytest.mark.parametrize("length", [63, 64, 65, 127, 128, 129, 200])
def test_nothing_is_lost_at_the_borders_of_words(length):
    text = "".join(np.random.default_rng(length).choice(list("abcd"), length))
    assert distance(text, text) == 0
    assert distance(text, text[1:]) == distance(text[:-1], text) == 1
    assert distance(text, text[5:] + "xyz") == define_distance(text, text[5:] + "xyz")
    assert distance(text, "z" * length) == length


def test_distance_counts_characters_not_bytes():
    assert distance("漢字", "漢") == 1
    assert distance("\N{GRINNING FACE}", "x") == 1


def test_a_lone_surrogate_is_a_character():
    assert distance("\ud800", "a\ud800") == 1


@settings(deadline=None)
@given(FEW_LETTERS, FEW_LETTERS, FEW_LETTERS)
def test_distance_is_a_metric(a, b, c):
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, c) <= distance(a, b) + distance(b, c)


@settings(deadline=None)
@given(st.one_of(FEW_LETTERS, LONG), st.one_of(FEW_LETTERS, LONG), st.integers(0, 20))
def test_a_cutoff_hides_only_greater_distances(a, b, cutoff):
    left, right = encode_strings([a], [b])
    table = new_pattern_table(len(a), left.alphabet_size)
    set_pattern(table, left.codes)
    found = distance_to_pattern(table, len(a), right.codes, cutoff)
    assert found == min(define_distance(a, b), cutoff + 1)
    clear_pattern(table, left.codes)
    assert not table.any()


def test_the_most_frequent_character_is_code_zero_in_all_groups():
    first, second = encode_strings(["abb", ""], ["bc"])
    assert first.codes.tolist() == [1, 0, 0]
    assert second.codes[0] == 0
    assert first.offsets.tolist() == [0, 3, 3]
    assert first.alphabet_size == second.alphabet_size == 3


def test_no_strings_have_no_distances():
    assert edit_distances([], ["a"]).shape == (0, 1)
    assert edit_distances(["a"], []).shape == (1, 0)
    assert edit_distances([""], ["", "ab"]).tolist() == [[0, 2]]


@settings(deadline=None)
@given(
    st.lists(st.text("abcd", max_size=7), max_size=6), st.lists(st.text("abcde", max_size=7), min_size=1, max_size=30)
)
def test_the_nearest_is_the_first_of_least_distance(queries, candidates):
    found = find_nearest(queries, candidates)
    expected = [define_nearest(query, candidates) for query in queries]
    assert list(zip(found.index.tolist(), found.distance.tolist(), strict=True)) == expected


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), min_size=1, max_size=12))
def test_the_nearest_follows_the_definition_for_any_text(queries, candidates):
    found = find_nearest(queries, candidates)
    assert found.index.tolist() == [define_nearest(query, candidates)[0] for query in queries]


def random_words(generator, count, alphabet, longest):
    return ["".join(generator.choice(alphabet, generator.integers(0, longest + 1))) for _ in range(count)]


@pytest.mark.parametrize("letters", [3, 60, 400])
def test_no_bound_rules_out_the_nearest(letters):
    """More candidates than a block, more letters than bits, many repeats, strings longer than a word."""
    generator = np.random.default_rng(letters)
    alphabet = np.array([chr(0x100 + i) for i in range(letters)])
    candidates = random_words(generator, 600, alphabet, 8) + random_words(generator, 5, alphabet, 140)
    queries = random_words(generator, 30, alphabet, 10) + random_words(generator, 3, alphabet, 140)
    found = find_nearest(queries, candidates)
    assert [tuple(pair) for pair in np.stack([found.index, found.distance], 1).tolist()] == [
        define_nearest(query, candidates) for query in queries
    ]


def test_the_number_of_threads_changes_nothing():
    generator = np.random.default_rng(0)
    queries, candidates = (random_words(generator, 900, np.array(list("abcdefgh")), 9) for _ in range(2))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(find_nearest(queries, candidates))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found[0].index, found[1].index)
    assert np.array_equal(found[0].distance, found[1].distance)


def test_without_candidates_nothing_is_nearest():
    found = find_nearest(["a", ""], [])
    assert found.index.tolist() == [-1, -1]
    assert found.distance.tolist() == [0, 0]
    assert find_nearest([], ["a"]).index.shape == (0,)


def test_equal_strings_are_nearest_to_their_first_copy():
    found = find_nearest(["b", "a", "b"], ["a", "b", "b", "a"])
    assert found.index.tolist() == [1, 0, 1]
    assert found.distance.tolist() == [0, 0, 0]
