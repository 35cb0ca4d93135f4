"""Retention: which runs are still kept, and that nothing goes that a kept one needs."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.artifacts import Ref, Runtime
from tasks.library.garbage import find_expired, find_garbage, sweep
from tasks.library.lineage import Library, RunRecord, record_run, runs
from tasks.library.retention import Retention
from tasks.storage.store import Store, open_store
from tests.tasks.library.test_garbage import download, extract


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(root=str(tmp_path))


def note(runtime: Runtime, run_id: str, days: float, *, name: str = "run", pinned: bool = False, **made: Ref) -> None:
    started = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    refs = list(made.values()) or [download.fn(run_id, runtime=runtime)]
    record = RunRecord(name=name, started_at=started, recipe={}, refs=refs, pinned=pinned)
    record_run(open_store(runtime), record, run_id=run_id)


def expired(runtime: Runtime, **rules: object) -> list[str]:
    store = open_store(runtime)
    found = find_expired(Library.load(store), runs(store), Retention.model_validate(rules))
    return [item.path.removeprefix("runs/").removesuffix(".json") for item in found]


def test_without_a_rule_every_run_is_kept(runtime: Runtime) -> None:
    note(runtime, "old", 5000)
    assert expired(runtime) == []
    assert expired(runtime, names=["other"]) == []


def test_runs_go_by_age(runtime: Runtime) -> None:
    for run_id, days in (("old", 40), ("older", 50), ("young", 20)):
        note(runtime, run_id, days)
    assert expired(runtime, days=30) == ["older", "old"]
    assert expired(runtime, days=45) == ["older"]


def test_the_latest_of_each_name_stay_whatever_their_age(runtime: Runtime) -> None:
    for number in range(3):
        note(runtime, f"a{number}", 100 + number, name="a")
        note(runtime, f"b{number}", 200 + number, name="b")
    assert expired(runtime, days=30, latest=1) == ["b2", "b1", "a2", "a1"]
    assert expired(runtime, latest=2) == ["b2", "a2"]
    assert expired(runtime, days=1000, latest=0) == []


def test_names_stay_and_forgotten_names_go(runtime: Runtime) -> None:
    note(runtime, "1", 100, name="paper-7b")
    note(runtime, "2", 100, name="scratch")
    assert expired(runtime, days=30, names=["paper-*"]) == ["2"]
    assert expired(runtime, forget=["scra*"]) == ["2"]
    assert expired(runtime, forget=["1"]) == ["1"]
    assert expired(runtime, forget=["*"], names=["paper-*"]) == ["2"]


def test_what_was_published_stays_until_it_is_forgotten(runtime: Runtime) -> None:
    note(runtime, "published-1", 5000, name="published to /x", pinned=True)
    assert expired(runtime, days=0, latest=0) == []
    assert expired(runtime, forget=["published to /x"]) == ["published-1"]


def test_a_run_that_may_be_going_on_stays_for_a_week(runtime: Runtime) -> None:
    planned = Ref(step="train", fingerprint="f" * 32)
    going = download.fn("going", runtime=runtime).model_copy(update=dict(planned))
    note(runtime, "going", 3, ref=going)
    note(runtime, "killed", 8, ref=going)
    assert expired(runtime, days=1) == ["killed"]
    assert expired(runtime, days=9) == []
    note(runtime, "done", 100)
    assert expired(runtime, latest=1, days=1) == ["killed"], "an unfinished run doesn't count as the latest"


def test_what_two_runs_share_goes_only_with_the_last_of_them(runtime: Runtime) -> None:
    store: Store = open_store(runtime)
    model = download.fn("shared", runtime=runtime)
    kept, lost = extract.fn(model, runtime=runtime), download.fn("lost", runtime=runtime)
    note(runtime, "new", 1, kept=kept)
    note(runtime, "old", 100, model=model, lost=lost)
    library, records = Library.load(store), runs(store)
    gone = find_expired(library, records, Retention(days=30))
    garbage = [*gone, *find_garbage(library, records["new"].refs, min_age=0.0)]
    assert [(item.kind, item.path) for item in garbage] == [("run", "runs/old.json"), ("artifact", lost.address)]
    assert garbage[1].bytes > 0
    assert sweep(store, reversed(garbage))[0].kind == "run", "a kept run never names what is gone"
    assert set(Library.load(store).manifests) == {model.address, kept.address}
    assert list(runs(store)) == ["new"]
