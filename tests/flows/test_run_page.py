"""The run's page against a server that refuses some of it: what it refuses costs nothing else."""

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.logging import disable_run_logger

from flows import run_page
from flows.run_page import Note
from flows.run_tables import Grid
from tasks.running.progress import Event

SHARD = "extract neox 001/002"


@dataclass
class Server:
    """Prefect's server as its client shows it. `refuses`: asked of the type and key of what is to be made."""

    refuses: Callable[[str, str | None], bool]
    data: dict[uuid.UUID, object] = field(default_factory=dict)
    keys: dict[str | None, uuid.UUID] = field(default_factory=dict)

    def create_artifact(self, artifact: ArtifactCreate) -> SimpleNamespace:
        if self.refuses(str(artifact.type), artifact.key):
            raise ConnectionError("reset by peer")
        made = self.keys[artifact.key] = uuid.uuid4()
        self.data[made] = artifact.data
        return SimpleNamespace(id=made)

    def update_artifact(self, artifact_id: uuid.UUID, artifact: ArtifactUpdate) -> None:
        self.data[artifact_id] = artifact.data


@contextlib.contextmanager
def shown_on(server: Server, patch: pytest.MonkeyPatch, *notes: Note) -> Iterator[run_page._Page]:
    """A page that is published to the server while the block runs, and its notes afterwards."""
    patch.setattr(run_page, "get_client", lambda sync_client: contextlib.nullcontext(server))
    patch.setattr(run_page, "EVERY_SECONDS", 0.01)
    patch.setattr(run_page, "LONG_SECONDS", -1.0)
    page = run_page._Page(uuid.uuid4(), "run", [Grid()], notes=list(notes))
    with disable_run_logger(), page.publishing():
        yield page


def test_a_table_that_was_refused_once_is_published_without_another_event(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True, True])
    server = Server(lambda kind, key: next(answers, False))
    with shown_on(server, monkeypatch) as page:
        page.hear(Event("extract", SHARD, "started"))
        deadline = time.monotonic() + 10
        while not server.keys and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(server.keys) == ["run-shards"]
    rows = json.loads(str(server.data[server.keys["run-shards"]]))
    assert rows == [{"shard": "001", "extract neox": "running"}]


def test_at_the_end_each_note_is_published_whatever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(lambda kind, key: kind == "progress" or key == "run-quality")
    notes = [Note(name, "markdown", f"what {name} says", "") for name in ("lineage", "quality", "comparison")]
    with shown_on(server, monkeypatch, *notes) as page:
        page.hear(Event("extract", SHARD, "work", done=1, total=4, unit="tokens"))
    assert sorted(map(str, server.keys)) == ["run-comparison", "run-lineage", "run-shards"]
    assert server.data[server.keys["run-comparison"]] == "what comparison says"
