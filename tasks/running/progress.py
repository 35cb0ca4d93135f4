"""What steps are doing, told to whoever listens in this process: the terminal's bars, a log, a test."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

EventState = Literal["waiting", "started", "work", "cached", "computed", "failed"]


@dataclass(frozen=True)
class Event:
    """One thing that happened to one step.

    `work` events carry how far a long step is (`done` of `total` `unit`s); `cached` and `computed` end a step
    well, `failed` ends one attempt badly (`message` says why).
    """

    step: str
    label: str
    state: EventState
    done: int = 0
    total: int = 0
    unit: str = ""
    seconds: float = 0.0
    message: str = ""


Listener = Callable[[Event], None]
_listeners: list[Listener] = []


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Calls `listener` with every event of every thread while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(event: Event) -> None:
    """Hands an event to all listeners."""
    for listener in list(_listeners):
        listener(event)
