"""Prefect's server on this machine: where its records lie, the address it has, and whether it answers."""

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from flows.cli.launch import HEARTBEAT_SECONDS, ROOT_VARIABLE

AUTH_VARIABLE = "PREFECT_SERVER_API_AUTH_STRING"
POSTGRES_VARIABLE = "LLM_FUSE_POSTGRES"


class AlreadyUp(Exception):
    """Another process serves from this home; the argument is the address it has."""


@dataclass(frozen=True)
class Server:
    """A server to be started. home: the folder of its records and logs; postgres: a URL, or None for SQLite there."""

    home: Path
    host: str = "127.0.0.1"
    port: int = 4200
    postgres: str | None = None

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{host}:{self.port}"

    @property
    def is_exposed(self) -> bool:
        """Whether other machines may reach it."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    @property
    def command(self) -> list[str]:
        """What starts it."""
        return [*prefect("server", "start"), "--host", self.host, "--port", str(self.port)]

    def environment(self, root: str, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
        """What the server, workers and runs have in their environment: this server, no other, and the store's root."""
        kept = {name: value for name, value in inherited.items() if not name.startswith("PREFECT_LOGGING_")}
        kept |= {
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_HOME": str(self.home),  # a profile of the user's may point at another server
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
            "PREFECT_CLI_COLORS": "false",
            "PYTHONUNBUFFERED": "1",
            ROOT_VARIABLE: root,
        }
        if self.is_exposed:
            kept["PREFECT_UI_API_URL"] = "/api"  # a browser elsewhere has another name for this machine
        if kept.get(AUTH_VARIABLE):
            kept["PREFECT_API_AUTH_STRING"] = kept[AUTH_VARIABLE]
        kept.pop(POSTGRES_VARIABLE, None)
        return kept

    def secrets(self) -> dict[str, str]:
        """What the server alone has besides: a run, which reads what its recipe says, has no use for the database."""
        return {} if self.postgres is None else {"PREFECT_API_DATABASE_CONNECTION_URL": _for_asyncpg(self.postgres)}

    def check(self) -> None:
        """Raises `ValueError`, naming the way out, for what would stop the server from starting."""
        _check_port(self.host, self.port)
        if self.postgres is not None:
            _check_postgres(self.postgres)

    def answers(self) -> bool:
        """Whether it is healthy by now."""
        return answers(self.url)

    @contextlib.contextmanager
    def locked_home(self) -> Iterator[None]:
        """Holds the home within the block, also against a second `up`. Raises `AlreadyUp`. A killed holder lets go."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)  # logs and records: of this user alone
        with (self.home / "up.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.seek(0)
                raise AlreadyUp(json.loads(lock.read() or "{}").get("url", "an address it has yet to write")) from None
            lock.seek(0)
            lock.truncate()
            json.dump({"url": self.url, "pid": os.getpid()}, lock)
            lock.flush()
            yield


def prefect(*words: str) -> list[str]:
    """Prefect's command line, by the Python that runs this."""
    return [sys.executable, "-m", "prefect", *words]


def default_home() -> Path:
    """The folder of the server's records if none is given."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "llm-fuse" / "server"


def answers(url: str) -> bool:
    """Whether a healthy Prefect server is there."""
    try:
        with urllib.request.urlopen(f"{url.removesuffix('/api')}/api/health", timeout=2) as reply:
            return bool(reply.read() == b"true")
    except (OSError, urllib.error.URLError, ValueError):
        return False


def wait_for(url: str, seconds: float) -> None:
    """Returns when the server answers. Raises `TimeoutError` after so many seconds."""
    end = time.monotonic() + seconds
    while not answers(url):
        if time.monotonic() > end:
            raise TimeoutError(f"expected a Prefect server at {url} within {seconds:.0f} s, found none; is it started?")
        time.sleep(0.25)


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise ValueError(f"--host: expected an address of this machine, found {host} ({error.strerror})") from None
        except OSError as error:
            raise ValueError(
                f"expected port {port} of {host} to be free, found it in use ({error.strerror}); take --port {port + 1}"
            ) from None


def _check_postgres(url: str) -> None:
    parts = urlsplit(quote_credentials(url))
    if parts.scheme.split("+")[0] not in ("postgresql", "postgres"):
        raise ValueError(f"--postgres: expected postgresql://host/database, found {parts.scheme or 'no scheme'}")
    try:
        place = (parts.hostname or "localhost", parts.port or 5432)
    except ValueError as error:
        raise ValueError(f"--postgres: expected a port from 0 to 65535, found {error}") from None
    try:
        socket.create_connection(place, timeout=3).close()
    except OSError as error:
        raise ValueError(f"--postgres: expected a server at {place[0]}:{place[1]}, found {error}; start it") from None


def quote_credentials(url: str) -> str:
    """The URL with what its user and password may hold (`/`, `#`, `@`, `:`) in percent form, where it isn't already."""
    scheme, found, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    user, colon, password = credentials.partition(":")
    return f"{scheme}{found}{_quote(user)}{colon}{_quote(password)}{at}{place}"


def _quote(text: str) -> str:
    return quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", text), safe="%")


def _for_asyncpg(url: str) -> str:
    return f"postgresql+asyncpg://{quote_credentials(url).partition('://')[2]}"
