"""How a flow's steps are run: by the task runner that the runtime names, and no longer than the flow itself."""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import psutil
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from tasks.artifacts import Runtime
from tasks.running.devices import count_workers
from tasks.running.stopping import stoppable

GRACE_SECONDS = 8.0
"""What steps have to stop by themselves after a SIGTERM, before the process ends without them."""


@contextlib.contextmanager
def executing(runtime: Runtime) -> Iterator[None]:
    """Within the block, steps go to the runtime's task runner; they stop when the flow is interrupted or cancelled.

    Prefect takes a flow's task runner from its decorator, before the runtime is known; so it is exchanged here,
    in the context of this flow run. Prefect's own way of ending waits for the tasks at work, which may take hours.
    """
    context = FlowRunContext.get()
    if context is None:
        yield
        return
    with make_task_runner(runtime) as runner, context.model_copy(update={"task_runner": runner}), stoppable():
        try:
            yield
        except TerminationSignal:
            end_process_after(GRACE_SECONDS, 128 + 15)
            raise


def make_task_runner(runtime: Runtime) -> TaskRunner[Any]:  # Any: what tasks return
    """The task runner that the runtime names. Raises `ValueError` when its package is not installed."""
    count = count_workers(runtime.max_workers, runtime.device)
    try:
        match runtime.task_runner:
            case "threads":
                return ThreadPoolTaskRunner(max_workers=count)
            case "dask":
                from prefect_dask import DaskTaskRunner

                workers = {"n_workers": count, "threads_per_worker": 1}
                dask: TaskRunner[Any] = DaskTaskRunner(cluster_kwargs=workers)
                return dask
            case "ray":
                from prefect_ray import RayTaskRunner

                ray: TaskRunner[Any] = RayTaskRunner()
                return ray
    except ImportError as error:
        name = runtime.task_runner
        raise ValueError(
            f"runtime.task_runner: {name} needs the package prefect-{name}, found none that works ({error}); "
            f"pip install 'llm-fuse[{name}]' or choose threads"
        ) from error


def end_process_after(seconds: float, code: int) -> None:
    """Ends this process and its children then, should it still be there."""

    def end() -> None:
        for child in psutil.Process().children(recursive=True):  # Prefect's server, a training
            with contextlib.suppress(psutil.Error):
                child.terminate()
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
