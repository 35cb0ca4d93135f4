"""What a flow holds of its steps: futures, the plan of a run that computes nothing, and waiting for many shards."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from tasks.artifacts import Ref


class Future(Protocol):
    """What `submit` returns: Prefect's future, or a finished one in a plan."""

    def result(self) -> Any:  # Any: Prefect's futures aren't generic over what our steps return
        """The ref, once it is there; raises what the step raised."""


@dataclass(frozen=True)
class Done:
    """A future that holds its ref already."""

    value: Ref

    def result(self) -> Ref:
        """The ref."""
        return self.value


@dataclass(frozen=True)
class Submitted:
    """A step that Prefect runs. Where an input failed it fails with that reason: Prefect itself says "not ready"."""

    future: Future
    inputs: tuple["Submitted", ...]

    def result(self) -> Any:  # Any: as of `Future`
        """The ref, once it is there."""
        try:
            return self.future.result()
        except Exception:
            for used in self.inputs:
                used.result()
            raise


@dataclass(frozen=True)
class Planned:
    """One artifact that a run would need. `cached_bytes` is None when it has to be computed."""

    step: str
    label: str
    ref: Ref
    cached_bytes: int | None


_PARALLEL_LOOKS = 16
_AWAITED = "awaited"
T = TypeVar("T")
U = TypeVar("U")
_plan: ContextVar[list[Planned] | None] = ContextVar("plan", default=None)


@contextlib.contextmanager
def planning() -> Iterator[list[Planned]]:
    """Within the block, `submit` computes nothing and appends to the list what a run would need."""
    entries: list[Planned] = []
    token = _plan.set(entries)
    try:
        yield entries
    finally:
        _plan.reset(token)


def current_plan() -> list[Planned] | None:
    """The list of the `planning()` block around the caller, or None when steps are to be run."""
    return _plan.get()


def is_planning() -> bool:
    """Whether the caller runs inside `planning()`."""
    return current_plan() is not None


def in_parallel(look: Callable[[T], U], items: Sequence[T]) -> list[U]:
    """What `look` says of each, in order; many at once, because a bucket takes milliseconds to answer each."""
    if len(items) == 1:
        return [look(items[0])]
    with ThreadPoolExecutor(max_workers=_PARALLEL_LOOKS) as pool:
        return list(pool.map(look, items))


def resolve(value: Any) -> Any:  # Any: a step's arguments, whatever they are
    """The value with our futures, also in lists and dictionaries, replaced by their refs or by Prefect's futures."""
    if isinstance(value, Done):
        return value.value
    if isinstance(value, Submitted):
        return value.future
    if isinstance(value, dict):
        return {key: resolve(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(item) for item in value]
    return value


def wrap(value: Any) -> Any:  # Any: a step's argument, whatever it is
    """The value with Prefect's futures for ours, and never a bare one.

    Before it waits for a bare future Prefect asks its server of it; where that doesn't answer, each task would try for
    a minute and then fail. Within a dictionary, which all task runners look into, it only waits.
    """
    return {_AWAITED: value.future} if isinstance(value, Submitted) else resolve(value)


def unwrap(value: Any) -> Any:  # Any: a step's argument, whatever it is
    """What `wrap` was given, once Prefect has waited for it."""
    return value[_AWAITED] if isinstance(value, dict) and value.keys() == {_AWAITED} else value


def submitted_in(value: Any) -> Iterator[Submitted]:  # Any: a step's arguments, whatever they are
    """The futures of running steps in the value, also in lists and dictionaries."""
    if isinstance(value, Submitted):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from submitted_in(item)


class ShardsFailed(Exception):
    """Too many shards failed; the message counts them and names the first reason. `causes`: what each failed with."""

    def __init__(self, message: str, causes: Sequence[BaseException] = ()) -> None:
        super().__init__(message)
        self.causes = tuple(causes)


def settle(futures: Sequence[Future], what: str, *, minimum: float = 1.0) -> list[Any]:  # Any: refs of what was awaited
    """The refs of all, None for each that failed, after the last has ended.

    Raises `ShardsFailed` when the share of those that succeeded is under `minimum`.
    """
    results: list[Any] = []
    causes: list[Exception] = []
    for future in futures:
        try:
            results.append(future.result())
        except Exception as error:  # whatever ended a shard, the others go on
            results.append(None)
            causes.append(error)
    succeeded = len(results) - len(causes)
    if succeeded < minimum * len(results) - 1e-9:  # 0.55 * 100 is a little over 55 in floating point
        first = " ".join(f"{type(causes[0]).__name__}: {causes[0]}".split())  # one line, wherever it is shown
        raise ShardsFailed(f"{len(causes)}/{len(results)} {what} failed: {first}", causes)
    return results
