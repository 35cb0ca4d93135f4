"""How the steps of a run that is told to end do so within seconds, instead of being waited for.

A thread can't be killed, so steps look up: between two batches, when they report progress, and while they wait
for somebody else's work. What they were writing is removed and their claims are released, as after any failure.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field


class Stopped(Exception):
    """The run was told to end while this step was at work."""

    def __init__(self) -> None:
        super().__init__("the run was told to end; nothing of this attempt is kept")


@dataclass
class _Stop:
    is_told: bool = False
    acts: list[Callable[[], None]] = field(default_factory=list)

    def tell(self) -> None:
        self.is_told = True
        for act in list(self.acts):
            act()


_stop: ContextVar[_Stop | None] = ContextVar("stop", default=None)  # tasks run in copies of their flow's context


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Stops the steps begun within the block when it is left by an interrupt, a signal or a cancellation."""
    stop = _Stop()
    token = _stop.set(stop)
    try:
        yield
    except Exception:  # a failure of one step is no reason to stop the others
        raise
    except BaseException:
        stop.tell()
        raise
    finally:
        _stop.reset(token)


def check_stopped() -> None:
    """Raises `Stopped` once the run has been told to end."""
    stop = _stop.get()
    if stop is not None and stop.is_told:
        raise Stopped


@contextlib.contextmanager
def when_stopped(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act`, in another thread, if the run is told to end while the block runs."""
    stop = _stop.get()
    if stop is None:
        yield
        return
    stop.acts.append(act)
    try:
        check_stopped()  # it may have been told just before
        yield
    finally:
        stop.acts.remove(act)
