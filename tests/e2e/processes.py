"""Real processes of this machine for as long as a test needs them."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

STOP_SECONDS = 20


def free_port() -> int:
    """A port of this machine that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def is_listening(port: int) -> bool:
    """Whether somebody takes connections at the port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    folder: Path | None = None,
    seconds: float = 60.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ready; told to end when the block ends, and killed if it doesn't.

    user: runs it as that user, which only root may. Raises `AssertionError` with the end of its log if it ends, or
    isn't ready in so many seconds.
    """
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=stream, stderr=stream, stdin=subprocess.DEVNULL,
            env=None if environment is None else {**os.environ, **environment}, user=user, group=user, cwd=folder,
        )  # fmt: skip
    try:
        end = time.monotonic() + seconds
        while not ready():
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}: {last_words(log)}"
            assert time.monotonic() < end, f"{command[0]} was not ready within {seconds:.0f} s: {last_words(log)}"
            time.sleep(0.1)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def call(*command: str | Path, user: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints. Raises `AssertionError` with its error output when it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True, text=True, user=user, group=user, timeout=120, check=False,
        env=None if environment is None else {**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"{command[0]}: {done.stderr[-1000:]}"
    return done.stdout


def last_words(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
