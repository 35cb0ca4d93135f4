"""The benchmarks can be listed and run, and their numbers mean what the table says."""

import json
import math
import sys
from functools import partial

import pytest
import torch

from fusion_core.nearest_string import find_nearest
from tests.bench import __main__ as bench
from tests.bench.reference import prepare, prepare_dense
from tests.bench.rows import Row, Skip, measure_peak, race
from tests.bench.vocabularies import _find_nearest_by_definition


def row(**changes: object) -> Row:
    values = {"name": "a", "seconds": 0.2, "twin": "b", "twin_seconds": 0.1, "peak_mib": 30.0, "target": ""}
    return Row(**{**values, **changes})


def test_the_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--list"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert {"extraction", "losses", "reference", "vocabularies"} <= listed


@pytest.mark.parametrize(
    ("target", "is_met"),
    [
        ("", None),
        ("fast", None),
        ("<= 2 x", True),
        ("<= 1.9 x", False),
        ("<= 200 ms", True),
        ("<= 199 ms", False),
        ("<= 1 s", True),
        ("<= 30 MiB", True),
        ("<= 1 s, <= 29 MiB", False),
    ],
)
def test_a_target_is_met_when_all_its_conditions_hold(target: str, is_met: bool | None) -> None:
    assert row(target=target).is_met is is_met


def test_a_memory_that_was_not_measured_meets_no_target() -> None:
    assert row(peak_mib=math.nan, target="<= 30 MiB").is_met is False


def test_actions_race_in_turns() -> None:
    calls: list[str] = []
    seconds = race(partial(calls.append, "ours"), partial(calls.append, "twin"), repeats=2)
    assert calls == ["ours", "twin"] * 3
    assert all(0 < one < 1 for one in seconds)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_the_peak_holds_what_an_action_takes_and_not_its_inputs() -> None:
    assert 64 <= measure_peak(partial(partial, torch.ones, 64 * 2**18)) < 80


def test_the_dense_twin_collates_the_same_targets() -> None:
    for sparse, dense in zip(prepare(20)(), prepare_dense(20)(), strict=True):
        torch.testing.assert_close(sparse[0].sort().values, dense.topk(10).values.sort().values, rtol=0, atol=2**-9)


def test_the_definition_of_edit_distance_finds_the_same_tokens() -> None:
    queries, candidates = ["fusion", "teh", "", "tokens"], ["the", "fuse", "token", "tokens!", "fission", "a"]
    assert _find_nearest_by_definition(queries, candidates) == find_nearest(queries, candidates).index.tolist()


def test_results_are_printed_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Module:
        @staticmethod
        def rows():
            yield row(target="<= 1 x", peak_mib=math.nan)
            yield Skip("c", "no device")

    monkeypatch.setattr(bench, "_find_benchmarks", lambda: {"some": Module})
    assert bench.main(["some", "--json", str(tmp_path / "deep" / "bench.json")]) == 1
    printed = capsys.readouterr().out
    assert "MISSED: <= 1 x" in printed
    assert "skipped: no device" in printed
    written = json.loads((tmp_path / "deep" / "bench.json").read_text())
    first, second = written["rows"]
    assert (first["ratio"], first["peak_mib"], first["is_met"]) == (2.0, None, False)
    assert second == {"name": "c", "skipped": "no device"}
