"""Projected rows against the target's true ones, both known by enumeration: each refinement brings them closer."""

import itertools

import pytest

from tests.bench.exactness import METHODS, run

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
    refined = distances["canonical + cover 2 + lookahead 2"]
    assert refined["bias"] <= refined["error"] + 1e-12
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
