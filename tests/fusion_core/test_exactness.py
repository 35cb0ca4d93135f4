"""Projected rows against the target's true ones, both known by enumeration: each refinement brings them closer."""

import itertools
import math

import numpy as np
import pytest

from fusion_core.types import NO_BOUNDARY
from tests.bench.exactness import (
    METHODS,
    align,
    draw_language,
    draw_tokenizer,
    measure,
    read_language,
    run,
    summarize_draws,
)

DRAWS = 4


@pytest.fixture(scope="module")
def distances():
    return run(DRAWS, longest=5)


def test_each_refinement_brings_the_error_down(distances):
    error = {name: row["error"] for name, row in distances.items()}
    falling = [
        "plain (first piece)",
        "canonical",
        "canonical + cover 1",
        "canonical + cover 2",
        "canonical + cover 2 + lookahead 1",
        "canonical + cover 2 + lookahead 2",
    ]
    assert error["canonical + cover 2 + lookahead 2"] < 0.4 * error["plain (first piece)"]
    for worse, better in itertools.pairwise(falling):
        assert error[better] <= error[worse] + 1e-12, (worse, better)


def test_rows_are_hardly_biased_by_looking_at_their_labels(distances):
    """What looking ahead gains stays gained when each row is averaged over all the labels it may look at."""
    refined, blind = distances["canonical + cover 2 + lookahead 2"], distances["canonical + cover 2"]
    assert refined["bias"] < 0.5 * blind["error"]
    assert refined["unknown"] < 1e-12


def test_a_bridge_covers_every_row_at_little_cost(distances):
    refined, bridged = (
        distances["canonical + cover 2 + lookahead 2"],
        distances["canonical + cover 2 + lookahead 2 + bridge"],
    )
    assert bridged["covered"] > refined["covered"]
    assert bridged["error"] < distances["canonical"]["error"]


def test_every_method_is_measured(distances):
    assert set(distances) == set(METHODS)


def test_the_originals_projection_is_farther_from_the_truth_than_the_plainest_of_ours(distances):
    plain = distances["plain (first piece)"]
    for name in ("original (min_edit, its own rules)", "min_edit_dtw + min_edit", "exact_dtw + exact"):
        assert distances[name]["error"] > plain["error"] + plain["error_se"], name
    assert distances["min_edit_dtw + min_edit"]["covered"] < plain["covered"]


WITHOUT_COVER = [name for name in METHODS if "cover" not in name]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "cover 2"])  # by itself it does harm even here
def test_equal_vocabularies_leave_no_error(name):
    distance = measure_equal_vocabularies(name)
    assert distance.error < 1e-12
    assert distance.bias < 1e-12
    assert distance.covered == pytest.approx(1)


@pytest.mark.parametrize("name", [name for name in WITHOUT_COVER if not name.startswith("original")])
def test_equal_vocabularies_leave_no_error_in_truncated_rows(name):
    distance = measure_equal_vocabularies(name, k=2)
    assert distance.error < 1e-12
    assert distance.kept < 1


def measure_equal_vocabularies(name, k=None):
    rng = np.random.default_rng(3)
    language, tokenizer = draw_language(rng, longest=5), draw_tokenizer(rng)
    source, truth = read_language(language, tokenizer, k), read_language(language, tokenizer)
    return measure(language, truth, align(METHODS[name], source, truth, [tokenizer] * 2))


def test_rows_that_lose_mass_are_not_measured():
    rng = np.random.default_rng(3)
    language, tokenizer = draw_language(rng, longest=3), draw_tokenizer(rng)
    truth = read_language(language, tokenizer)
    aligned = align(METHODS["canonical"], truth, truth, [tokenizer] * 2)
    aligned.dist.logprobs[(truth.tokens.boundaries != NO_BOUNDARY).nonzero()[0]] -= 1e-6
    with pytest.raises(AssertionError, match="mass"):
        measure(language, truth, aligned)


def test_standard_errors_are_those_of_the_mean():
    found = summarize_draws(["a", "b"], [[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    assert found == pytest.approx({"a": 3, "a_se": math.sqrt(7 / 3), "b": 5, "b_se": 0})
    assert summarize_draws(["a"], [[1.0]]) == {"a": 1, "a_se": 0}
