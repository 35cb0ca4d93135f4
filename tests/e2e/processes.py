"""Real processes of this machine for as long as a test needs them."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STOP_SECONDS = 20


def free_port() -> int:
    """A port of this machine that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def is_listening(where: int | Path) -> bool:
    """Whether somebody takes connections at the port, or at the socket of that path."""
    with contextlib.suppress(OSError):
        if isinstance(where, int):
            with socket.create_connection(("127.0.0.1", where), timeout=1):
                return True
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(str(where))
            return True
    return False


@dataclass
class Service:
    """A process of this machine that can be begun, killed and begun again; its words are added to the log.

    user: runs it as that user, which only root may.
    """

    command: Sequence[str | Path]
    log: Path
    ready: Callable[[], bool]
    environment: Mapping[str, str] | None = None
    user: str | None = None
    folder: Path | None = None
    seconds: float = 60.0
    process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Returns once it is ready. Raises `AssertionError` with the end of its log if it ends, or isn't in time."""
        with self.log.open("ab") as stream:
            self.process = process = subprocess.Popen(
                [str(word) for word in self.command],
                stdout=stream, stderr=stream, stdin=subprocess.DEVNULL,
                env=None if self.environment is None else {**os.environ, **self.environment},
                user=self.user, group=self.user, cwd=self.folder,
            )  # fmt: skip
        name, end = self.command[0], time.monotonic() + self.seconds
        while not self.ready():
            assert process.poll() is None, f"{name} ended with {process.returncode}: {last_words(self.log)}"
            assert time.monotonic() < end, f"{name} was not ready within {self.seconds:.0f} s: {last_words(self.log)}"
            time.sleep(0.1)

    def kill(self) -> None:
        """Ends it as the kernel does: now, with nothing tidied up."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def end(self) -> None:
        """Tells it to end, and kills it if it doesn't."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    folder: Path | None = None,
    seconds: float = 60.0,
) -> Iterator[Service]:
    """A process that is ready; told to end when the block ends, and killed if it doesn't. See `Service`."""
    service = Service(command, log, ready, environment, user, folder, seconds)
    try:
        service.begin()
        yield service
    finally:
        service.end()


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
