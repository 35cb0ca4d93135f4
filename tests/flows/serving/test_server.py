"""What a server is started with, and what is refused before it is."""

import os
import socket
from pathlib import Path

import pytest

from flows.serving.server import AlreadyUp, Server, answers, wait_for

LOOPBACK = "127.0.0.1"


def test_children_speak_to_this_server_whatever_was_set_before(tmp_path: Path) -> None:
    inherited = {"PREFECT_API_URL": "https://elsewhere/api", "PREFECT_LOGGING_LEVEL": "CRITICAL", "PATH": "/bin"}
    found = Server(tmp_path, port=4321).environment("s3://b", inherited)
    assert found["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"
    assert found["PREFECT_HOME"] == str(tmp_path)
    assert found["LLM_FUSE_ROOT"] == "s3://b"
    assert found["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert found["PATH"] == "/bin"
    assert "PREFECT_LOGGING_LEVEL" not in found


@pytest.mark.parametrize(
    ("host", "exposed", "url"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:4200"),
        ("localhost", False, "http://localhost:4200"),
        ("0.0.0.0", True, "http://127.0.0.1:4200"),
        ("::", True, "http://[::1]:4200"),
        ("10.0.0.7", True, "http://10.0.0.7:4200"),
        ("gpu-box", True, "http://gpu-box:4200"),
    ],
)
def test_only_loopback_is_not_exposed(tmp_path: Path, host: str, exposed: bool, url: str) -> None:
    server = Server(tmp_path, host)
    assert (server.is_exposed, server.url) == (exposed, url)
    assert ("PREFECT_UI_API_URL" in server.environment("r", {})) == exposed


def test_clients_get_the_password_that_the_server_asks_for(tmp_path: Path) -> None:
    found = Server(tmp_path).environment("r", {"PREFECT_SERVER_API_AUTH_STRING": "u:p"})
    assert found["PREFECT_API_AUTH_STRING"] == "u:p"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_any_postgres_url_becomes_the_one_that_prefect_takes(tmp_path: Path, scheme: str) -> None:
    found = Server(tmp_path, postgres=f"{scheme}://u:p@h:1/d").secrets()
    assert found["PREFECT_API_DATABASE_CONNECTION_URL"] == "postgresql+asyncpg://u:p@h:1/d"


@pytest.mark.parametrize(("written", "quoted"), [("p/w#1@x:?", "p%2Fw%231%40x%3A%3F"), ("a%40b%", "a%40b%25")])
def test_a_password_may_hold_what_urls_are_made_of(tmp_path: Path, written: str, quoted: str) -> None:
    with socket.create_server((LOOPBACK, 0)) as database:
        server = Server(tmp_path, port=_free(), postgres=f"postgresql://u:{written}@{LOOPBACK}:{_port_of(database)}/d")
        server.check()
    assert f"//u:{quoted}@{LOOPBACK}" in server.secrets()["PREFECT_API_DATABASE_CONNECTION_URL"]


def test_only_the_server_knows_the_database(tmp_path: Path) -> None:
    url = "postgresql://u:hidden@h:1/d"
    found = Server(tmp_path, postgres=url).environment("r", {"LLM_FUSE_POSTGRES": url})
    assert "hidden" not in str(found)


def test_a_port_in_use_is_refused_with_another(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"expected port {port} .* take --port {port + 1}"):
            Server(tmp_path, port=port).check()
        with pytest.raises(ValueError, match="expected postgresql://"):
            Server(tmp_path, port=_free(), postgres="mysql://u:p@h/d").check()


def test_a_database_that_is_not_there_is_refused_without_its_password(tmp_path: Path) -> None:
    url = f"postgresql://u:secret@{LOOPBACK}:{_free()}/d"
    with pytest.raises(ValueError, match=r"--postgres: expected a server at 127\.0\.0\.1:\d+") as refused:
        Server(tmp_path, port=_free(), postgres=url).check()
    assert "secret" not in str(refused.value)


def test_a_home_serves_one_at_a_time(tmp_path: Path) -> None:
    first, second = Server(tmp_path, port=4201), Server(tmp_path, port=4202)
    with first.locked_home(), pytest.raises(AlreadyUp, match=r"http://127\.0\.0\.1:4201"), second.locked_home():
        pass
    with second.locked_home():
        assert str(os.getpid()) in (tmp_path / "up.lock").read_text()


def test_nobody_there_is_no_answer() -> None:
    url = f"http://{LOOPBACK}:{_free()}"
    assert not answers(url)
    with pytest.raises(TimeoutError, match="expected a Prefect server at"):
        wait_for(url, 0.0)


def _port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def _free() -> int:
    with socket.create_server((LOOPBACK, 0)) as free:
        return int(free.getsockname()[1])
