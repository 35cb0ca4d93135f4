"""Waiting for many: all are awaited, failures are counted, a minimum share may be enough."""

from dataclasses import dataclass

import pytest

from tasks.artifacts import ModelRef, Ref
from tasks.running.planning import Done, ShardsFailed, current_plan, is_planning, planning, resolve, settle

REF = ModelRef(step="s", fingerprint="f")


@dataclass
class Broken:
    reason: str

    def result(self) -> Ref:
        raise OSError(self.reason)


def test_all_refs_come_back_in_order() -> None:
    other = ModelRef(step="s", fingerprint="g")
    assert settle([Done(REF), Done(other)], "shards") == [REF, other]
    assert settle([], "shards") == []


def test_failures_are_counted_with_the_first_reason() -> None:
    with pytest.raises(ShardsFailed, match=r"^2/3 shards failed: OSError: first$"):
        settle([Broken("first"), Done(REF), Broken("second")], "shards")


@pytest.mark.parametrize(("failed", "total", "minimum"), [(1, 10, 0.9), (45, 100, 0.55), (3, 3, 0.0), (0, 3, 1.0)])
def test_a_share_that_is_just_reached_is_enough(failed: int, total: int, minimum: float) -> None:
    futures = [Broken("x")] * failed + [Done(REF)] * (total - failed)
    assert settle(futures, "shards", minimum=minimum) == [None] * failed + [REF] * (total - failed)


@pytest.mark.parametrize(("failed", "total", "minimum"), [(2, 10, 0.9), (46, 100, 0.55), (1, 3, 1.0)])
def test_a_share_that_is_just_missed_is_not(failed: int, total: int, minimum: float) -> None:
    with pytest.raises(ShardsFailed, match=f"{failed}/{total}"):
        settle([Broken("x")] * failed + [Done(REF)] * (total - failed), "shards", minimum=minimum)


def test_a_plan_lasts_for_its_block() -> None:
    with planning() as plan:
        assert is_planning()
        assert current_plan() is plan
    assert not is_planning()


def test_finished_futures_are_resolved_wherever_they_are() -> None:
    assert resolve({"a": Done(REF), "b": [Done(REF), 3], "c": "text"}) == {"a": REF, "b": [REF, 3], "c": "text"}
