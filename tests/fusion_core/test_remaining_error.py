"""The table of the remaining error: it is the product's error, and its oracles leave none where they should."""

import pytest

from tests.bench.exactness import run
from tests.bench.remaining_error import draw_world, join_overlapping, measure_world, resolve

LONGEST = 4


@pytest.fixture(scope="module")
def found():
    return measure_world(draw_world(0, LONGEST))


@pytest.mark.parametrize("steps", [0, 1])
def test_the_point_teacher_is_the_alignments_own(found, steps):
    name = "canonical + cover 2" + (f" + lookahead {steps}" if steps else "")
    assert found[f"lookahead {steps}: point"] == pytest.approx(run(1, LONGEST)[name]["error"], abs=1e-9)


def test_what_covers_leave_out_weighs_no_more_than_its_bound(found):
    assert 0 <= found["ways: share of others"] <= found["ways: bound of others"]
    assert found["ways: cover any"] <= found["ways: cover 2"] <= found["ways: cover 1"] <= found["ways: cover 0"]


def test_a_student_that_knows_the_truth_resolves_every_set_to_it():
    truth = {"a": 0.5, "ab": 0.3, "b": 0.2}
    sets = {frozenset(["a", "ab"]): 0.8, frozenset(["b"]): 0.2}
    assert resolve(sets, truth) == pytest.approx(truth)
    assert resolve(sets, {"b": 1.0}) == pytest.approx({"a": 0.4, "ab": 0.4, "b": 0.2})


def test_joined_sets_are_a_partition_that_cuts_none():
    sets = [frozenset(s) for s in ("ab", "bc", "d", "ef", "fa", "g")]
    assert set(join_overlapping(sets)) == {frozenset("abcef"), frozenset("d"), frozenset("g")}
