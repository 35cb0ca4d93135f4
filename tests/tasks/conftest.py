"""Servers of this machine for the real clients: one with the Hugging Face hub's endpoints, and one that speaks S3."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import pytest

from tasks.artifacts import Runtime
from tasks.storage.store import Store
from tests.tasks.hub_writes import Writes, Written


@dataclass
class Repository:
    """Files per commit, and where branches and tags point."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    licence: str = "apache-2.0"
    is_gated: bool = False


@dataclass
class Hub:
    """The server's repositories, what to do wrong, and what was asked.

    break_once: files whose first transfer ends half-way. broken: files that can't be fetched (HTTP 500).
    corrupt_once: files whose first transfer has a wrong byte. gate: large files wait until it is set.
    requests: (method, file or path, Range header).
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    break_once: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    corrupt_once: set[str] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    written: Written = field(default_factory=Written)
    branches: set[str] = field(default_factory=lambda: {"main"})

    def push(self, repo: str, folder: Path, revision: str = "main", **extra: bytes | str) -> str:
        """Commits a folder's files (and `extra`, by name), moves the revision there, returns the commit."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        files |= {name: body if isinstance(body, bytes) else body.encode() for name, body in extra.items()}
        return self.add(repo, files, revision)

    def add(self, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Commits these files and nothing else, moves the revision there, returns the commit."""
        content = "".join(f"{name} {_sha256(body)}\n" for name, body in sorted(files.items()))
        commit = hashlib.sha1(f"{repo}\n{content}".encode()).hexdigest()
        repository = self.repositories.setdefault(repo, Repository())
        repository.commits[commit] = files
        repository.revisions[revision] = commit
        return commit

    def fetched(self, file: str) -> list[str | None]:
        """The Range headers of the transfers of a file."""
        return [ranges for method, name, ranges in self.requests if (method, name) == ("GET", file)]


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class _Handler(Writes, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "datasets":
            parts = parts[1:]
        if parts[:2] == ["api", "datasets"] and "tree" in parts:
            at = parts.index("tree")
            self._list("/".join(parts[2:at]), parts[at + 1], "/".join(parts[at + 2 :]))
        elif parts[:2] in (["api", "models"], ["api", "datasets"]) and "revision" in parts:
            at = parts.index("revision")
            self._describe("/".join(parts[2:at]), "/".join(parts[at + 1 :]))
        elif parts[0] == "cdn":
            self._send_file(parts[1], parts[2])
        elif "resolve" in parts:
            at = parts.index("resolve")
            self._resolve("/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]))
        else:
            self._reply(404, b"{}")

    def _describe(self, repo: str, revision: str) -> None:
        self.hub.requests.append((self.command, self.path, None))
        found = self._find(repo, revision)
        if found is None:
            return
        commit, files = found
        siblings = [
            {"rfilename": name, "size": len(body), "blobId": hashlib.sha1(body).hexdigest()}
            | ({"lfs": {"sha256": _sha256(body), "size": len(body), "pointerSize": 134}} if _is_large(name) else {})
            for name, body in files.items()
        ]
        card = {"license": self.hub.repositories[repo].licence}
        answer = {"_id": "1", "id": repo, "sha": commit, "siblings": siblings, "cardData": card, "tags": []}
        self._reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _list(self, repo: str, revision: str, folder: str) -> None:
        found = self._find(repo, revision)
        if found is None:
            return
        below = [name for name in found[1] if PurePosixPath(name).is_relative_to(folder)]
        is_deep = "recursive=true" in self.path.lower()
        files = [name for name in below if is_deep or str(PurePosixPath(name).parent) == (folder or ".")]
        entries: list[dict[str, object]] = [
            {"type": "file", "path": name, "size": len(found[1][name]), "oid": hashlib.sha1(found[1][name]).hexdigest()}
            for name in files
        ]
        depth = len(PurePosixPath(folder).parts) + 1
        folders = {"/".join(PurePosixPath(name).parts[:depth]) for name in below if name not in files}
        entries += [{"type": "directory", "path": name, "oid": _sha256(name.encode())} for name in sorted(folders)]
        if entries:
            self._reply(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        else:
            self._reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _resolve(self, repo: str, revision: str, file: str) -> None:
        found = self._find(repo, revision)
        if found is None:
            return
        commit, files = found
        if file not in files:
            self._reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        elif _is_large(file):  # the hub sends clients to its store of large files
            digest = _sha256(files[file])
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(files[file]))}
            elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
            self._reply(302, b"", {"X-Repo-Commit": commit, "Location": f"{elsewhere}/cdn/{digest}/{file}", **linked})
        else:
            self.hub.requests.append((self.command, file, self.headers.get("Range")))
            tag = hashlib.sha1(files[file]).hexdigest()
            self._reply(200, files[file], {"X-Repo-Commit": commit, "ETag": f'"{tag}"'})

    def _send_file(self, digest: str, file: str) -> None:
        ranges = self.headers.get("Range")
        self.hub.requests.append((self.command, file, ranges))
        if "Authorization" in self.headers:  # the store is another host, which must not see tokens
            self._reply(400, b"a token was sent to another host")
            return
        self.hub.gate.wait(timeout=60)
        if file in self.hub.broken:
            self._reply(500, b"out of order")
            return
        commits = (c for r in self.hub.repositories.values() for c in r.commits.values())
        body = next(c[file] for c in commits if file in c and _sha256(c[file]) == digest)
        start = int(ranges.removeprefix("bytes=").split("-")[0]) if ranges else 0
        headers = {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if ranges:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if file in self.hub.corrupt_once:
            self.hub.corrupt_once.discard(file)
            body = body[:-1] + bytes([body[-1] ^ 1])
        breaks = file in self.hub.break_once
        self.hub.break_once.discard(file)
        self._reply(206 if ranges else 200, body[start:], headers, send=len(body) // 2 if breaks else None)

    def _find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files, or None after answering with the hub's kind of error."""
        repository = self.hub.repositories.get(repo)
        if repository is None:
            self._reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif repository.is_gated and self.headers.get("Authorization") != "Bearer hf_granted":
            status = 403 if "Authorization" in self.headers else 401  # a token without access, or none
            self._reply(status, b"{}", {"X-Error-Code": "GatedRepo"})
        elif (commit := repository.revisions.get(revision, revision)) not in repository.commits:
            self._reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            return commit, repository.commits[commit]
        return None

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, send: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:send])
        if send is not None:
            self.close_connection = True


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub on this machine; `HF_ENDPOINT` points to it."""
    hub = Hub()
    hub.gate.set()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # a protocol that this hub doesn't speak
    for variable in ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


# ---- stores --------------------------------------------------------------------------------------------

BUCKET = "fuse-tests"


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a running S3 server with one bucket; the usual AWS variables lead to it while the session lasts."""
    folder = tmp_path_factory.mktemp("s3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3", "LOG_LEVEL": "WARNING"}
    command = str(Path(sys.executable).with_name("ministack"))
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([command], cwd=folder, env=os.environ | settings, stdout=log, stderr=log)
    endpoint = f"http://127.0.0.1:{port}"
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**credentials, "AWS_ENDPOINT_URL": endpoint}.items():
            patch.setenv(name, value)
        try:
            _wait_for(server, port)
            Store(f"s3://{BUCKET}").fs.mkdir(BUCKET)
            yield endpoint
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(5)
            server.kill()
            server.wait()


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(200):
        assert server.poll() is None, "the S3 server ended at once"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError("the S3 server did not answer within 20 s")


@pytest.fixture
def s3_root(s3_endpoint: str) -> str:
    """A prefix that no other test uses."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh store root: once a folder, once a prefix in a bucket."""
    return str(tmp_path / "store") if request.param == "local" else str(request.getfixturevalue("s3_root"))


@pytest.fixture
def runtime(root: str, tmp_path: Path) -> Runtime:
    """How to run below `root`, with a cache of the test's own."""
    return Runtime(root=root, cache_dir=str(tmp_path / "cache"), device="cpu", lease_seconds=3.0)


@pytest.fixture
def store(root: str, tmp_path: Path) -> Store:
    """The store at `root`, sharing nothing with other tests."""
    return Store(root, cache_dir=str(tmp_path / "cache"))
