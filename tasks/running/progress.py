"""What steps are doing, told to whoever listens in this process: the terminal's bars, a log, a test."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tasks.secrets import redact

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
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Calls `listener` with every event of every thread while the block runs, or until it fails."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _drop(listener)


def tell(event: Event) -> None:
    """Hands an event to all listeners. One that fails hears no more: a closed pipe is no failure of the step."""
    for listener in list(_listeners):
        try:
            listener(event)
        except Exception as error:
            _drop(listener)
            _log.warning("progress is no longer shown: %s: %s", type(error).__name__, redact(str(error)))


def _drop(listener: Listener) -> None:
    with contextlib.suppress(ValueError):  # it failed, and is gone already
        _listeners.remove(listener)
