"""The right to use a device: one slot of a Prefect concurrency limit, for as long as a step computes."""

import contextlib
import time
from collections.abc import Callable, Iterator

from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

from tasks.stopping import check_stopped
from tasks.transient import is_transient

EVERY_SECONDS = 1.0
LEASE_SECONDS = 60.0
"""How long a slot whose holder was killed is missed; Prefect takes no less."""
_LOCKED = 423


@contextlib.contextmanager
def device_slot(limit: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a slot of the limit within the block; waits for one as long as it takes, also for a server that is away.

    on_wait: called once if it has to wait. Prefect's own waiting looks at no request to stop, and a time limit on it
    loses slots that the server grants too late; so each attempt here is a single one.
    Raises `Stopped`, and Prefect's `ConcurrencySlotAcquisitionError` for a limit that doesn't exist.
    """
    with contextlib.ExitStack() as held:
        is_first = True
        while not _take(held, limit):
            if is_first:
                on_wait()
                is_first = False
            time.sleep(EVERY_SECONDS)
        yield


def _take(held: contextlib.ExitStack, limit: str) -> bool:
    """Whether a slot was free, which is then held."""
    check_stopped()
    try:
        held.enter_context(
            concurrency(
                limit, occupy=1, max_retries=0, strict=True, lease_duration=LEASE_SECONDS,
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
