"""A run that is told to end: its steps stop, and only then."""

import contextvars
import threading
from collections.abc import Callable

import pytest

from tasks.artifacts import Runtime, TextsRef
from tasks.running.stopping import Stopped, check_stopped, stoppable, when_stopped
from tasks.step import Output, step
from tasks.storage.store import Store


def test_outside_of_a_run_nothing_is_stopped() -> None:
    check_stopped()
    with when_stopped(lambda: pytest.fail("nobody told to stop")):
        pass


@pytest.mark.parametrize("reason", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_stops_what_is_at_work(reason: type[BaseException]) -> None:
    ended, stopped = threading.Event(), threading.Event()

    def run() -> None:
        with stoppable():
            with when_stopped(ended.set):
                pass
            threads.append(_in_copied_context(lambda: _work_until(stopped)))
            raise reason

    threads: list[threading.Thread] = []
    with pytest.raises(reason):
        run()
    threads[0].join(10)
    assert stopped.is_set()
    assert not ended.is_set()  # that block was over
    check_stopped()


def test_a_failure_stops_nothing() -> None:
    def work() -> None:
        go.wait(10)
        check_stopped()
        worked.set()

    def run() -> None:
        with stoppable():
            threads.append(_in_copied_context(work))
            raise ValueError("one step")

    go, worked, threads = threading.Event(), threading.Event(), []
    with pytest.raises(ValueError, match="one step"):
        run()
    go.set()
    threads[0].join(10)
    assert worked.is_set()


def test_work_that_would_begin_after_the_end_was_told_does_not() -> None:
    def late() -> None:
        go.wait(10)
        with pytest.raises(Stopped), when_stopped(lambda: None):
            began.append("late")
        looked.set()

    def run() -> None:
        with stoppable():
            threads.append(_in_copied_context(late))
            raise KeyboardInterrupt

    go, looked, threads = threading.Event(), threading.Event(), []
    began: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run()
    go.set()
    threads[0].join(10)
    assert looked.is_set()
    assert began == []


def test_a_stopped_step_leaves_nothing(runtime: Runtime, store: Store) -> None:
    @step(version=1)
    def stopped(*, runtime: Runtime, out: Output) -> TextsRef:
        """At work when the run is told to end."""
        (out.dir / "half").write_text("half")
        told.wait(10)
        out.progress(1, 2, "halves")
        return out.ref(TextsRef)

    told, errors = threading.Event(), []

    def attempt() -> None:
        try:
            stopped.fn(runtime=runtime)
        except Stopped as error:
            errors.append(error)

    def run() -> None:
        with stoppable():
            threads.append(_in_copied_context(attempt))
            raise KeyboardInterrupt

    threads: list[threading.Thread] = []
    with pytest.raises(KeyboardInterrupt):
        run()
    told.set()
    threads[0].join(30)
    assert len(errors) == 1
    assert store.listing() == {}


def _in_copied_context(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=contextvars.copy_context().run, args=(act,))
    thread.start()
    return thread


def _work_until(stopped: threading.Event) -> None:
    try:
        while True:
            check_stopped()
    except Stopped:
        stopped.set()
