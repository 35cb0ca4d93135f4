"""Running a flow from the terminal: Prefect made quiet, its state turned into a value or the reason of the failure."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pydantic import ValidationError

from flows.cli.exits import FAILED
from flows.cli.guard import guarded
from tasks.artifacts import Runtime

ROOT_VARIABLE = "LLM_FUSE_ROOT"
DEFAULT_ROOT = "./.llm-fuse"
HEARTBEAT_SECONDS = 30
"""Prefect takes no less; its automation waits for almost three of them."""
_GRACE_SECONDS = 6.0


def runtime_of(
    root: str | None, device: str | None = None, max_workers: int | None = None, settings: Sequence[str] | None = None
) -> Runtime:
    """The runtime that the options and the environment ask for; a folder's path is made absolute.

    A run is also seen in Prefect's UI, from other machines and folders, where a relative path says nothing.
    settings: `key.path=value` for any other field. Raises `RecipeError` for one that isn't there or doesn't fit.
    """
    place = root or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT
    if "://" not in place:
        place = str(Path(place).expanduser().absolute())
    options: dict[str, Any] = {"root": place, "device": device, "max_workers": max_workers}
    given = {name: value for name, value in options.items() if value is not None}
    from flows.recipe_files import RecipeError, explain_errors, set_field

    for setting in settings or ():
        set_field(given, setting, option="--runtime")
    try:
        return Runtime.model_validate(given)
    except ValidationError as error:
        raise RecipeError(f"--runtime {explain_errors(error, given)}") from None


def quiet_libraries(*, verbose: bool) -> None:
    """Sets what must be set before libraries are imported: no look-ups on the network, no log or bars on the terminal.

    Prefect's log still goes to the server that `PREFECT_API_URL` names. Whatever the user has set stands.
    """
    settings = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # of transformers too: the terminal has our own
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    if not verbose:
        settings["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
        settings["PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL"] = "CRITICAL"
        settings["PREFECT_LOGGING_LEVEL"] = "WARNING" if "PREFECT_API_URL" not in os.environ else "INFO"
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def launch(flow: Any, *arguments: Any, runtime: Runtime, **keywords: Any) -> Any:  # Any: a flow's signature is its own
    """What the flow returns. Raises what it failed with."""
    with _ends_when_told(), _heard_by_the_server(), _ends_without_a_server(), guarded():
        state = flow(*arguments, runtime=runtime, return_state=True, **keywords)
    value = state.result(raise_on_failure=False)
    if isinstance(value, BaseException):
        raise value
    return value


@contextlib.contextmanager
def _heard_by_the_server() -> Iterator[None]:
    """Within the block runs tell their server every so often that they live, as those of workers do.

    A run that is killed is then marked Crashed by the server's automation (`infra.automations`), which leaves alone
    whoever never said anything. A server inside this process ends with it, and is told nothing.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    if PREFECT_API_URL.value() is None:
        yield
        return
    with temporary_settings(set_defaults={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: HEARTBEAT_SECONDS}):
        yield


@contextlib.contextmanager
def _ends_without_a_server() -> Iterator[None]:
    """Raises `ConnectionError` when a run can't tell its server how it ended; then the process ends within seconds.

    Steps go on without a server. At the end Prefect would take seconds for each of their events to give it up.
    """
    import httpx
    from prefect.settings import PREFECT_API_URL

    from flows.execution import end_process_after

    try:
        yield
    except httpx.TransportError as error:  # not of a step: those are in the run's state
        end_process_after(_GRACE_SECONDS, FAILED)
        raise ConnectionError(
            f"expected Prefect's server {PREFECT_API_URL.value()} to hear how the run ended, found no answer "
            f"({error}); what is done is kept: start the server, and the same command goes on"
        ) from error


@contextlib.contextmanager
def _ends_when_told() -> Iterator[None]:
    """Within the block Ctrl-C ends the process in seconds, whatever its threads are doing.

    A SIGTERM goes to Prefect first, which may belong to a worker, and comes here when it has told its server.
    Steps stop by themselves where they can (`tasks.running.stopping`). Should one not, the process ends all the same:
    claims of a process that is gone block nobody, and what it was writing is not part of any artifact.
    """
    from flows.execution import end_process_after

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        print("\ninterrupted; the same command goes on where it stopped", file=sys.stderr, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what breaks now, breaks because of this
        end_process_after(_GRACE_SECONDS, 128 + number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
