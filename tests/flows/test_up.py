"""`llm-fuse up` as a person starts it: a real server, deployments, workers; and as a person, or the kernel, ends it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.serving.processes import MARK
from tests.flows.conftest import Cli

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-c", "import sys; from flows.cli import main; sys.exit(main())"]
START_SECONDS = 120


@dataclass
class Up:
    """A machine that serves, and where failures are told."""

    process: subprocess.Popen[str]
    url: str
    home: Path
    root: Path
    environment: dict[str, str]
    told: list[dict[str, Any]]

    def api(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}/api{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        for _ in range(20):
            try:
                with urllib.request.urlopen(request, timeout=30) as reply:
                    return json.loads(reply.read() or "null")
            except urllib.error.HTTPError as busy:
                if busy.code != 503:  # SQLite has one writer; whoever comes too often is told to come again
                    raise
                time.sleep(1)
        raise TimeoutError(path)

    def call(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, *(str(word) for word in words)]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def run(self, deployment: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """The final state of a run of the deployment."""
        found = self.api("GET", f"/deployments/name/{deployment}")
        body = {"parameters": parameters}
        run = self.api("POST", f"/deployments/{found['id']}/create_flow_run", body)
        end = time.monotonic() + 90
        while run["state"]["type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            assert time.monotonic() < end, f"still {run['state']['name']}"
            time.sleep(0.5)
            run = self.api("GET", f"/flow_runs/{run['id']}")
        return dict(run["state"])

    def wait_for(self, found: Callable[[], Any], seconds: float) -> Any:
        """The first of what is found that isn't empty."""
        end = time.monotonic() + seconds
        while not (value := found()):
            assert time.monotonic() < end, f"nothing within {seconds:.0f} s"
            time.sleep(0.5)
        return value

    def family(self) -> list[psutil.Process]:
        """Every process that it has started, the watchdog aside."""
        home = str(self.home)
        return [p for p in _processes() if (e := _environ(p)).get("PREFECT_HOME") == home and MARK in e]


@pytest.fixture(scope="module")
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", told
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, webhook: tuple[str, list[dict[str, Any]]]) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PREFECT_")}
    environment |= {"LLM_FUSE_NOTIFY_URL": webhook[0], "DO_NOT_TRACK": "1"}
    words = ["up", "--home", str(folder / "home"), "--root", str(folder / "store"), "--port", str(port)]
    with subprocess.Popen(
        [*COMMAND, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        watch = threading.Timer(START_SECONDS, process.terminate)
        watch.start()
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("Ctrl-C"):
                break
        watch.cancel()
        assert "Ctrl-C stops all of it.\n" in said, "".join(said)
        environment |= {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_HOME": str(folder / "client")}
        yield Up(process, f"http://127.0.0.1:{port}", folder / "home", folder / "store", environment, webhook[1])
        process.terminate()
        process.wait(20)


def test_what_people_start_is_there(up: Up) -> None:
    found = {each["name"]: each for each in up.api("POST", "/deployments/filter", {})}
    presets = {"quickstart", "paper-7b"}
    assert set(found) == presets | {
        "fuse", "extract-source", "evaluate", "compare", "inspect", "publish", "gc",
    }  # fmt: skip
    assert found["quickstart"]["parameters"]["recipe"]["name"] == "quickstart"
    assert all(each["parameters"]["runtime"]["root"] == str(up.root) for each in found.values())
    assert up.api("GET", "/v2/concurrency_limits/gpu-slots")["limit"] >= 1
    automations = {each["name"] for each in up.api("POST", "/automations/filter", {})}
    assert automations == {"Silent runs have crashed", "Tell about failures"}
    with urllib.request.urlopen(f"{up.url}/ui-settings", timeout=10) as reply:
        assert json.loads(reply.read())["api_url"] == f"{up.url}/api"


def test_a_run_of_a_deployment_completes(up: Up) -> None:
    assert up.run("collect-garbage/gc", {})["type"] == "COMPLETED"


def test_a_run_that_fails_is_told(up: Up) -> None:
    state = up.run("collect-garbage/gc", {"runtime": {"root": "/proc/no/store"}})
    assert state["type"] == "FAILED"
    up.wait_for(lambda: up.told, 30)
    assert up.told[0]["text"].startswith("llm-fuse: a run failed\ncollect-garbage")
    assert state["message"].splitlines()[0][:40] in up.told[0]["text"]


def test_a_run_from_a_terminal_that_is_killed_is_marked_and_a_silent_one_is_not(up: Up, tmp_path: Path) -> None:
    """Silent from its beginning: of an installation that sends no signs of life."""
    flow = up.api("POST", "/flows/", {"name": "elsewhere"})
    silent = up.api("POST", "/flow_runs/", {"flow_id": flow["id"], "state": {"type": "RUNNING"}})
    command = [*COMMAND, "run", "quickstart", "--root", str(tmp_path)]
    with subprocess.Popen(command, env=up.environment, stderr=subprocess.DEVNULL, start_new_session=True) as run:
        wanted: dict[str, Any] = {"flows": {"name": {"any_": ["fuse-models"]}}}
        killed = up.wait_for(lambda: up.api("POST", "/flow_runs/filter", wanted), 90)[0]["id"]
        heard = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{killed}"]}}
        up.wait_for(lambda: up.api("POST", "/events/filter", {"filter": heard})["events"], 60)
        os.killpg(run.pid, signal.SIGKILL)
    up.wait_for(lambda: up.api("GET", f"/flow_runs/{killed}")["state"]["type"] == "CRASHED", 150)
    state = up.api("GET", f"/flow_runs/{killed}")["state"]
    assert state["message"].startswith("no sign of life for 80 s")
    assert up.api("GET", f"/flow_runs/{silent['id']}")["state"]["type"] == "RUNNING"


def test_registering_again_keeps_what_people_set(up: Up) -> None:
    before = up.api("GET", "/deployments/name/collect-garbage/gc")
    schedule = before["schedules"][0]
    assert schedule["active"] is False
    up.api("PATCH", f"/deployments/{before['id']}/schedules/{schedule['id']}", {"active": True})
    up.api("PATCH", "/v2/concurrency_limits/gpu-slots", {"limit": 7})
    again = up.call("deploy", "--root", up.root / "elsewhere")
    assert again.returncode == 0, again.stderr
    assert "collect-garbage/gc" in again.stdout.splitlines()
    after = up.api("GET", "/deployments/name/collect-garbage/gc")
    assert after["id"] == before["id"]
    assert after["parameters"]["runtime"]["root"].endswith("elsewhere")  # what was asked for has changed
    assert [s["active"] for s in after["schedules"]] == [True]  # what people set has not
    assert up.api("GET", "/v2/concurrency_limits/gpu-slots")["limit"] == 7
    assert len(up.api("POST", "/automations/filter", {})) == 2


def test_a_second_up_says_so_and_ends(up: Up) -> None:
    second = up.call("up", "--home", up.home)
    assert second.returncode == 0
    assert second.stdout == f"already up: {up.url} (home {up.home})\n"


def test_another_home_on_the_same_port_is_one_line(up: Up, tmp_path: Path) -> None:
    port = up.url.rpartition(":")[2]
    other = up.call("up", "--home", tmp_path, "--port", port)
    assert (other.returncode, other.stdout) == (2, "")
    assert other.stderr.startswith(f"error: expected port {port} of 127.0.0.1 to be free")
    assert other.stderr.count("\n") == 1


def test_sigterm_ends_everything_within_ten_seconds(up: Up) -> None:
    assert len(up.family()) >= 3
    began = time.monotonic()
    up.process.terminate()
    assert up.process.wait(10) == 0
    assert up.family() == []
    assert time.monotonic() - began < 10


def test_deploy_without_a_server_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert "expected PREFECT_API_URL=" in cli("deploy").err


def test_a_pool_that_does_not_exist_is_refused(cli: Cli, tmp_path: Path) -> None:
    called = cli("up", "--home", tmp_path, "--workers", "cpu,tpu")
    assert called.code == 2
    assert "expected some of cpu, gpu, found tpu" in called.err


def _processes() -> list[psutil.Process]:
    return list(psutil.process_iter())


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}
