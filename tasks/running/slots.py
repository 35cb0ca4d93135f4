"""The right to use a device: one slot of a Prefect concurrency limit, for as long as a step computes."""

import contextlib
import time
from collections.abc import Callable, Iterator

from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

from tasks.artifacts import Runtime
from tasks.running.devices import reserve_devices, visible_devices
from tasks.running.stopping import check_stopped
from tasks.running.transient import is_transient

EVERY_SECONDS = 1.0
LEASE_SECONDS = 60.0
"""How long a slot whose holder was killed is missed; Prefect takes no less."""
_LOCKED = 423


@contextlib.contextmanager
def device_place(runtime: Runtime, count: int | None, on_wait: Callable[[str], None]) -> Iterator[Runtime]:
    """The runtime with the devices that are this step's alone within the block: `cuda:1`, `cuda:0,cuda:2` or `cpu`.

    count: how many it needs; None for all. A step that needs none waits for nothing, and what it computes by itself it
    computes on the CPU. on_wait: called with the reason, once, if it has to wait.
    Raises as `device_slot`, and `ValueError` for devices that aren't here.
    """
    if count == 0:
        yield runtime.model_copy(update={"device": "cpu"})
        return
    names = visible_devices(runtime.device)
    wanted, limit = len(names) if count is None else count, runtime.device_slots
    with contextlib.ExitStack() as held:
        if limit is not None:
            held.enter_context(device_slot(limit, lambda: on_wait(f"no slot of {limit} is free"), wanted))
        reserved = reserve_devices(names, wanted, on_wait=lambda: on_wait("the devices are in use"))
        yield runtime.model_copy(update={"device": ",".join(held.enter_context(reserved))})


@contextlib.contextmanager
def device_slot(limit: str, on_wait: Callable[[], None] = lambda: None, occupy: int = 1) -> Iterator[None]:
    """Holds slots of the limit within the block; waits for them as long as it takes, also for a server that is away.

    on_wait: called once if it has to wait. Prefect's own waiting looks at no request to stop, and a time limit on it
    loses slots that the server grants too late; so each attempt here is a single one.
    Raises `Stopped`, and Prefect's `ConcurrencySlotAcquisitionError` for a limit that doesn't exist.
    """
    with contextlib.ExitStack() as held:
        is_first = True
        while not _take(held, limit, occupy):
            if is_first:
                on_wait()
                is_first = False
            time.sleep(EVERY_SECONDS)
        yield


def _take(held: contextlib.ExitStack, limit: str, occupy: int) -> bool:
    """Whether so many slots were free, which are then held."""
    check_stopped()
    try:
        held.enter_context(
            concurrency(
                limit, occupy=occupy, max_retries=0, strict=True, lease_duration=LEASE_SECONDS,
                raise_on_lease_renewal_failure=False,  # hours of training outweigh a server that is away for a minute
            )
        )  # fmt: skip
    except ConcurrencySlotAcquisitionError as error:
        if not _may_come(error.__cause__):
            raise
        return False
    return True


def _may_come(cause: BaseException | None) -> bool:
    status = getattr(getattr(cause, "response", None), "status_code", None)
    return cause is not None and (status == _LOCKED or is_transient(cause))
