"""Steps as Prefect tasks: hits are seen as `Cached`, the world is retried, bugs and bad input are not."""

import contextlib
import contextvars
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run
from prefect.testing.utilities import prefect_test_harness

from tasks.artifacts import Runtime, StoreError, TextsRef
from tasks.running.planning import ShardsFailed, resolve, settle
from tasks.running.progress import listening
from tasks.running.stopping import Stopped, stoppable
from tasks.step import Output, step
from tasks.storage.store import open_store

CALLS: list[str] = []


@step(version=1, retries=2)
def fragile(name: str, errors: list[str], *, runtime: Runtime, out: Output) -> TextsRef:
    """Raises each of the errors once, then succeeds."""
    CALLS.append(name)
    turn = CALLS.count(name) - 1
    if turn < len(errors):
        raise {"reset": ConnectionResetError, "value": ValueError, "store": StoreError}[errors[turn]]("as told")
    (out.dir / "text").write_text(name)
    return out.ref(TextsRef)


@step(version=1)
def join(texts: list[TextsRef], *, runtime: Runtime, out: Output) -> TextsRef:
    """All names in one file."""
    store = open_store(runtime)
    (out.dir / "text").write_text(" ".join((store.fetch(ref) / "text").read_text() for ref in texts))
    return out.ref(TextsRef)


@step(version=1, on_device=True)
def compute(*, runtime: Runtime, out: Output) -> TextsRef:
    """Something on a device."""
    return out.ref(TextsRef)


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    CALLS.clear()
    return Runtime(root=str(tmp_path))


def run_one(name: str, errors: list[str], runtime: Runtime) -> State[Any]:
    """The final state of the task, in a flow of its own."""
    states: list[State[Any]] = []

    @flow
    def one() -> None:
        future: Any = resolve(fragile.submit(name, errors, runtime=runtime, label=f"fragile {name}"))
        future.wait()
        states.append(future.state)

    one()
    return states[0]


def run_each(names: list[str], runtime: Runtime) -> tuple[list[TextsRef], dict[str, str]]:
    """The refs that a flow got, and what the server shows of it: the state of each task run by name."""
    flow_run_ids: list[Any] = []

    @flow
    def each() -> list[TextsRef]:
        flow_run_ids.append(flow_run.get_id())
        futures = fragile.submit_each([(name, []) for name in names], runtime=runtime, label="fragile")
        return [future.result() for future in futures]

    refs = each()
    return refs, shown_of(flow_run_ids[0])


def shown_of(flow_run_id: str) -> dict[str, str]:
    """Name and state of the flow run's task runs once the server has been told of their end."""
    query = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(flow_run_id)]))
    with get_client(sync_client=True) as client:
        for _ in range(100):
            runs = client.read_task_runs(flow_run_filter=query)
            if runs and all(run.state and run.state.is_final() for run in runs):
                return {run.name: run.state.name for run in runs if run.state}
            time.sleep(0.1)
    raise AssertionError("the server was not told within 10 s")


def test_a_hit_is_seen_as_cached_and_gives_the_same_ref(runtime: Runtime) -> None:
    first, shown = run_each(["a"], runtime)
    assert shown == {"fragile 001/001": "Completed"}
    second, shown = run_each(["a"], runtime)
    assert shown == {"fragile": "Cached"}
    assert second == first == [fragile.fn("a", [], runtime=runtime)]
    assert CALLS == ["a"]


def test_hits_share_one_task_run_and_misses_have_their_own(runtime: Runtime) -> None:
    made, _ = run_each(["a", "b", "c"], runtime)
    refs, shown = run_each(["a", "x", "b", "c", "y"], runtime)
    assert shown == {
        "fragile: 3 of 5 cached": "Cached",
        "fragile 002/005": "Completed",
        "fragile 005/005": "Completed",
    }
    assert [refs[0], refs[2], refs[3]] == made
    assert sorted(CALLS) == ["a", "b", "c", "x", "y"]


def test_a_hit_whose_artifact_was_withdrawn_is_computed_again(runtime: Runtime) -> None:
    (first,), _ = run_each(["a"], runtime)
    store = open_store(runtime)
    manifest = store.manifest(first)
    assert manifest is not None
    store.withdraw(manifest)
    (again,), shown = run_each(["a"], runtime)
    assert (again, shown) == (first, {"fragile 001/001": "Completed"})


def test_the_world_is_retried(runtime: Runtime) -> None:
    state = run_one("b", ["reset"], runtime)
    assert state.is_completed()
    assert CALLS == ["b", "b"]
    manifest = open_store(runtime).manifest(state.result())
    assert manifest is not None
    assert manifest.flow_run_id
    assert manifest.task_run_id


@pytest.mark.parametrize(("how", "error"), [("value", ValueError), ("store", StoreError)])
def test_what_is_for_the_user_is_not_retried(runtime: Runtime, how: str, error: type[Exception]) -> None:
    state = run_one("c", [how], runtime)
    assert state.is_failed()
    with pytest.raises(error, match="as told"):
        state.result()
    assert CALLS == ["c"]
    assert open_store(runtime).listing() == {}


def test_futures_flow_through_lists_and_one_failure_spares_the_others(runtime: Runtime) -> None:
    @flow
    def gather(broken: list[str]) -> TextsRef:
        made = [fragile.submit(n, ["value"] * (n in broken), runtime=runtime, label=n) for n in ("x", "y", "z")]
        joined = join.submit(made, runtime=runtime)
        settle(made, "texts")
        ref: TextsRef = joined.result()
        return ref

    with pytest.raises(ShardsFailed, match="1/3 texts failed: ValueError: as told"):
        gather(["y"])
    assert sorted(CALLS) == ["x", "y", "z"]
    folder = open_store(runtime).fetch(gather([]))
    assert (folder / "text").read_text() == "x y z"


def test_what_never_began_has_its_name(runtime: Runtime) -> None:
    flow_run_ids: list[str] = []

    @flow
    def broken() -> None:
        flow_run_ids.append(str(flow_run.get_id()))
        made = fragile.submit("x", ["value"], runtime=runtime, label="x")
        with contextlib.suppress(Exception):
            join.submit([made], runtime=runtime, label="join 003/064").result()

    broken()
    query = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(flow_run_ids[0])]))
    with get_client(sync_client=True) as client:
        _wait_for(lambda: "NotReady" in [run.state_name for run in client.read_task_runs(flow_run_filter=query)])
        runs = client.read_task_runs(flow_run_filter=query)
    (never,) = [run for run in runs if run.state_name == "NotReady"]
    assert re.fullmatch(r"join 003/064-\w{3}", never.name)  # Prefect's own ending


def test_a_device_slot_is_taken_for_work_and_not_for_hits(runtime: Runtime) -> None:
    limited = runtime.model_copy(update={"device_slots": "no-such-limit"})
    with pytest.raises(Exception, match="no-such-limit"):
        compute.fn(runtime=limited)
    assert compute.fn(runtime=runtime) == compute.fn(runtime=limited)


@pytest.fixture
def limit(runtime: Runtime) -> Iterator[Runtime]:
    """A runtime with one device slot, which is free."""
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="one-slot", limit=1))
        yield runtime.model_copy(update={"device_slots": "one-slot"})
        client.delete_global_concurrency_limit_by_name("one-slot")


def test_who_waits_for_a_slot_claims_nothing_and_goes_on_when_it_is_free(limit: Runtime) -> None:
    heard: list[str] = []
    with listening(lambda event: heard.append(event.state)), ThreadPoolExecutor() as pool:
        with concurrency("one-slot", strict=True):
            waiting = pool.submit(compute.fn, runtime=limit)
            _wait_for(lambda: heard == ["waiting"])
            assert open_store(limit).listing() == {}
            made = compute.fn(runtime=limit.model_copy(update={"device_slots": None}))  # nobody has to wait for it
        assert waiting.result(30) == made
    assert heard == ["waiting", "started", "computed", "cached"]


def test_a_wait_for_a_slot_ends_when_the_run_is_told_to(limit: Runtime) -> None:
    heard: list[str] = []
    with listening(lambda event: heard.append(event.state)), ThreadPoolExecutor() as pool:
        with concurrency("one-slot", strict=True):
            with contextlib.suppress(KeyboardInterrupt), stoppable():
                waiting = pool.submit(contextvars.copy_context().run, partial(compute.fn, runtime=limit))
                _wait_for(lambda: heard == ["waiting"])
                raise KeyboardInterrupt
            with pytest.raises(Stopped):
                waiting.result(10)
        with concurrency("one-slot", strict=True, max_retries=0):  # it took none
            pass


def _wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end, "nothing happened within 30 s"
        time.sleep(0.05)
