"""Paths are those of the full table, ties and all, although most of it is never computed."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_core.dtw import Sequences, warp
from fusion_core.edit_distance import edit_distances

PIECES = st.text("ab", max_size=3)
DOCUMENT = st.lists(PIECES, max_size=9)
DIAGONAL, UP, LEFT = (-1, -1), (-1, 0), (0, -1)


def define_path(source, target):
    """The full table, then back from its last pair by the least predecessor; of equal ones diagonal, up, left."""
    distances = edit_distances(source, target).tolist()
    total = {}
    for i in range(len(source)):
        for j in range(len(target)):
            before = [total[i + di, j + dj] for di, dj in (DIAGONAL, UP, LEFT) if (i + di, j + dj) in total]
            total[i, j] = distances[i][j] + (min(before) if before else 0)
    pair = (len(source) - 1, len(target) - 1)
    path = [pair]
    while pair != (0, 0):
        steps = [(pair[0] + di, pair[1] + dj) for di, dj in (DIAGONAL, UP, LEFT)]
        pair = min((step for step in steps if step in total), key=lambda step: total[step])
        path.insert(0, pair)
    return path, total[len(source) - 1, len(target) - 1]


def sequences(documents):
    number = {}
    tokens = [number.setdefault(text, len(number)) for document in documents for text in document]
    offsets = np.cumsum([0, *map(len, documents)])
    return Sequences(list(number), np.array(tokens, dtype=np.int64), offsets)


def path_of(source, target):
    found = warp(sequences([source]), sequences([target]))
    return list(zip(found.source.tolist(), found.target.tolist(), strict=True)), found.costs[0]


@settings(deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=9), st.lists(PIECES, min_size=1, max_size=9))
def test_paths_follow_the_definition_where_most_steps_tie(source, target):
    assert path_of(source, target) == define_path(source, target)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=4), min_size=1, max_size=6), st.lists(st.text(max_size=4), min_size=1, max_size=6))
def test_paths_follow_the_definition_for_any_text(source, target):
    assert path_of(source, target) == define_path(source, target)


def cut(generator, text, longest):
    places = np.cumsum(generator.integers(1, longest + 1, len(text)))
    places = [0, *places[places < len(text)].tolist(), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]


@pytest.mark.parametrize("seed", range(6))
def test_paths_of_two_cuts_of_one_text_follow_the_definition(seed):
    generator = np.random.default_rng(seed)
    text = "".join(generator.choice(list("the quick brown fox"), 160))
    source, target = cut(generator, text, 5), cut(generator, text, 3)
    assert path_of(source, target) == define_path(source, target)


def test_an_approximate_pass_that_goes_astray_changes_nothing():
    """The best path begins with a detour far more expensive than the first pass allows."""
    source = ["x" * 60] * 3 + [f"{i:03}" for i in range(40)]
    target = [f"{i:03}" for i in range(40)] + ["y"]
    assert path_of(source, target) == define_path(source, target)
    assert path_of(target, source) == define_path(target, source)


@pytest.mark.parametrize(("source", "target"), [(["a"], ["a", "b", "c"]), (["a", "b", "c"], ["c"]), ([""], [""])])
def test_a_single_token_matches_everything(source, target):
    assert path_of(source, target) == define_path(source, target)


@settings(deadline=None)
@given(st.lists(st.tuples(DOCUMENT, DOCUMENT), max_size=4))
def test_documents_are_warped_apart(documents):
    source, target = sequences([s for s, _ in documents]), sequences([t for _, t in documents])
    found, start = warp(source, target), 0
    for d, (ours, theirs) in enumerate(documents):
        path, cost = define_path(ours, theirs) if ours and theirs else ([], 0)
        stop = start + len(path)
        assert (found.source[start:stop] - source.offsets[d]).tolist() == [i for i, _ in path]
        assert (found.target[start:stop] - target.offsets[d]).tolist() == [j for _, j in path]
        assert found.costs[d] == cost
        start = stop
    assert start == len(found.source) == len(found.target)


def test_the_number_of_threads_changes_nothing():
    generator = np.random.default_rng(1)
    texts = ["".join(generator.choice(list("abcde "), 80)) for _ in range(12)]
    source, target = (sequences([cut(generator, text, n) for text in texts]) for n in (4, 3))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(warp(source, target))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found[0].source, found[1].source)
    assert np.array_equal(found[0].target, found[1].target)
    assert np.array_equal(found[0].costs, found[1].costs)


def test_another_number_of_documents_is_refused():
    with pytest.raises(ValueError, match="found 2 and 1"):
        warp(sequences([["a"], ["b"]]), sequences([["a"]]))
