"""`serve`: a server, what it must know, and a worker per pool, until somebody says stop."""

import contextlib
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from flows.serving.processes import Family
from flows.serving.server import Server, prefect

START_SECONDS = 180.0
RESTART_SECONDS = 5.0
"""How long a worker that ended stays down: long enough to read its log, and no busy loop."""


class StartError(OSError):
    """The server or what it must know did not come up; the message is for users."""


def serve(
    server: Server,
    root: str,
    pools: Sequence[str],
    gpu_slots: int,
    ready: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Returns when it was told to stop (Ctrl-C, SIGTERM) and all children have ended, within ten seconds.

    ready: called once runs can be started. say: takes a line for whoever watches.
    Raises `StartError` where something doesn't start, or the server ends; nothing is left running then either.
    """
    register = [sys.executable, "-m", "flows.serving.register", "--root", root, "--gpu-slots", str(gpu_slots)]
    with _told_to_stop() as told, Family(server.environment(root, os.environ), server.home / "logs") as family:
        family.start("server", server.command, server.secrets())
        family.start("register", [*register, "--wait", str(START_SECONDS)])  # imports while the server starts
        if not _started(family, told):
            return
        for pool in pools:
            family.start(_worker(pool), _worker_command(pool))
        ready()
        _watch(family, pools, told, say)


def _started(family: Family, told: threading.Event) -> bool:
    """Whether the server knows all that it must; False when told to stop before."""
    while (code := family.ended("register")) is None:
        if told.wait(0.1):
            return False
        _check_server(family)
    if code != 0:
        raise StartError(
            f"registering deployments failed: {family.last_words('register')}; see {family.log('register')}"
        )
    return True


def _watch(family: Family, pools: Sequence[str], told: threading.Event, say: Callable[[str], None]) -> None:
    down: dict[str, float] = {}
    while not told.wait(0.5):
        _check_server(family)
        family.trim_logs()
        for pool in pools:
            name = _worker(pool)
            if family.ended(name) is None:
                continue
            if name not in down:
                down[name] = time.monotonic()
                say(f"{name} ended ({family.last_words(name)}); starting it again")
            elif time.monotonic() - down[name] > RESTART_SECONDS:
                del down[name]
                family.start(name, _worker_command(pool))


def _check_server(family: Family) -> None:
    if family.ended("server") is not None:
        raise StartError(f"Prefect's server ended: {family.last_words('server')}; see {family.log('server')}")


def _worker(pool: str) -> str:
    return f"worker-{pool}"


def _worker_command(pool: str) -> list[str]:
    name = f"{platform.node()}-{pool}"  # a new name each time would leave an offline worker in the UI each time
    return [*prefect("worker", "start"), "--pool", pool, "--type", "process", "--name", name]


@contextlib.contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    told = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # nohup: not by SIGHUP
    before = {number: signal.signal(number, lambda *_: told.set()) for number in heard}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
