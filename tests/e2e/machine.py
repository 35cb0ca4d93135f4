"""One machine of a team: `llm-fuse up` as a process, and its server as a script asks it."""

import contextlib
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.processes import free_port, running

LLM_FUSE = [sys.executable, "-c", "import sys; from flows.cli import main; sys.exit(main())"]
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class Server:
    """A Prefect server that runs. url: where a browser finds it."""

    url: str

    def ask(self, method: str, path: str, body: object = None) -> Any:  # Any: the answer's JSON
        """The answer; a server that is busy is asked again."""
        request = urllib.request.Request(
            f"{self.url}/api{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        for _ in range(30):
            try:
                with urllib.request.urlopen(request, timeout=30) as reply:
                    return json.loads(reply.read() or "null")
            except urllib.error.HTTPError as busy:
                with busy:
                    if busy.code != 503:
                        raise AssertionError(f"{method} {path}: {busy.code} {busy.read()[:500]!r}") from busy
                time.sleep(1)
        raise TimeoutError(path)

    def add_preset(self, name: str, like: str, recipe: Mapping[str, Any], **runtime: Any) -> None:
        """A deployment like another one, with a recipe of its own: what a team adds to `infra/prefect.yaml`."""
        known = self.ask("GET", f"/deployments/name/{like}")
        copied = ("flow_id", "entrypoint", "tags", "parameter_openapi_schema", "enforce_parameter_schema")
        made = {field: known[field] for field in copied} | {"name": name, "work_pool_name": known["work_pool_name"]}
        made["description"] = recipe["description"]
        made["parameters"] = {"recipe": recipe, "runtime": known["parameters"]["runtime"] | runtime}
        self.ask("POST", "/deployments/", made)

    def start(self, deployment: str, parameters: Mapping[str, Any]) -> str:
        """The id of a new run."""
        found = self.ask("GET", f"/deployments/name/{deployment}")
        body = {"parameters": {**found["parameters"], **parameters}}
        return str(self.ask("POST", f"/deployments/{found['id']}/create_flow_run", body)["id"])

    def wait_for(self, run_id: str, seconds: float, happened: Callable[[dict[str, Any]], bool] | None = None) -> str:
        """The type of the run's state once it has ended, or once what is asked for has happened."""
        end = time.monotonic() + seconds
        while True:
            run = self.ask("GET", f"/flow_runs/{run_id}")
            kind = str(run["state"]["type"])
            if happened(run) if happened else kind in ENDED:
                return kind
            assert time.monotonic() < end, f"after {seconds:.0f} s still {run['state']['name']}"
            time.sleep(0.5)

    def task_states(self, run_id: str) -> dict[str, str]:
        """The name of the last state of each of the run's tasks, by the task run's name."""
        wanted = {"flow_runs": {"id": {"any_": [run_id]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 200}
        found = self.ask("POST", "/task_runs/filter", wanted)
        return {run["name"]: run["state"]["name"] for run in found}

    def said(self, run_id: str) -> list[str]:
        """The run's log, from its beginning."""
        wanted = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [line["message"] for line in self.ask("POST", "/logs/filter", wanted)]


@contextlib.contextmanager
def up(home: Path, root: str, environment: Mapping[str, str], *words: str) -> Iterator[Server]:
    """`llm-fuse up` with a home of its own, once it says that it can be used."""
    port, log = free_port(), home.with_suffix(".log")
    command = [*LLM_FUSE, "up", "--home", str(home), "--root", root, "--port", str(port), *words]
    said = lambda: "Ctrl-C stops all of it." in log.read_text()  # noqa: E731
    with running(command, log, said, environment, seconds=180):
        yield Server(f"http://127.0.0.1:{port}")
