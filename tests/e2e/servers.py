"""The servers that a team has: Postgres for the records, an S3 server for the artifacts; and a line that can break."""

import contextlib
import os
import re
import shutil
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from tests.e2e.processes import Service, call, free_port, is_listening, running

KEY, SECRET = "test", "testtest"


def find_postgres() -> Path | None:
    """The folder of Postgres' programs: of the newest version that Debian has installed, or on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextlib.contextmanager
def postgres(programs: Path, folder: Path) -> Iterator[str]:
    """The URL of an empty database that asks for a password."""
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    data, password, port = folder / "data", folder / "password", free_port()
    folder.mkdir()
    password.write_text("secret\n")
    if user:
        for path in (folder, password):
            shutil.chown(path, user)
    asks = ("--auth=scram-sha-256", f"--pwfile={password}", "--username=prefect")
    call(programs / "initdb", "-D", data, "--no-sync", "--encoding=UTF8", "--locale=C", *asks, user=user)
    options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
    words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    with running(
        [programs / "postgres", "-D", data, *words], folder.with_suffix(".log"), lambda: is_listening(port), user=user
    ):
        yield f"postgresql://prefect:secret@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def prefect(home: Path) -> Iterator[tuple[str, Service]]:
    """The URL of the API of a Prefect server of its own, and its process."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    home.mkdir(parents=True)

    def is_healthy() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
            return True
        return False

    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    settings = {"PREFECT_HOME": str(home), "PREFECT_API_URL": url}
    with running(command, home / "server.log", is_healthy, settings, seconds=120) as service:
        yield url, service


@dataclass(frozen=True)
class S3Server:
    """Where an S3 server is, and its processes by name: the one that speaks S3 last."""

    url: str
    services: dict[str, Service]


@contextlib.contextmanager
def ministack(folder: Path) -> Iterator[S3Server]:
    """An S3 server in one process that writes to disk before it answers."""
    folder.mkdir()
    port = free_port()
    settings = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3", "LOG_LEVEL": "WARNING"}
    settings |= {"S3_PERSIST": "1", "S3_DATA_DIR": str(folder / "s3")}
    command = [Path(sys.executable).with_name("ministack")]
    with running(command, folder.with_suffix(".log"), lambda: is_listening(port), settings, folder=folder) as service:
        yield S3Server(f"http://127.0.0.1:{port}", {"server": service})


@dataclass
class Line:
    """The way to an S3 server. While `denied` is set, requests like `GET /bucket/key` that it matches are forbidden."""

    url: str = ""
    denied: re.Pattern[str] | None = None
    refused: list[str] = field(default_factory=list)


@contextlib.contextmanager
def line_to(server: str) -> Iterator[Line]:
    """A line of its own to the server, which works until told otherwise."""
    line = Line()
    handler = type("Handler", (_Handler,), {"line": line, "server_url": server})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.1})
    thread.start()
    line.url = f"http://127.0.0.1:{proxy.server_port}"
    try:
        yield line
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


_FORBIDDEN = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    line: Line
    server_url: str

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that was ended
            super().handle()

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = f"{self.command} {unquote(self.path)}"
        if self.line.denied is not None and self.line.denied.search(asked):
            self.line.refused.append(asked)
            self._answer(403, {"Content-Type": "application/xml"}, _FORBIDDEN)
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_ONE_HOP}
        request = urllib.request.Request(self.server_url + self.path, body or None, headers, method=self.command)
        try:
            with _opener.open(request, timeout=60) as reply:
                self._answer(reply.status, dict(reply.headers.items()), reply.read())
        except urllib.error.HTTPError as error:
            with error:
                self._answer(error.code, dict(error.headers.items()), error.read())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        kept = {name: value for name, value in headers.items() if name.lower() not in _OF_ONE_HOP}
        for name, value in {**kept, "Content-Length": length}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


_OF_ONE_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
