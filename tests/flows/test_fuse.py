"""`fuse_models` through a server: what its page shows, and a run of which a shard failed, retried as the UI does it."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from huggingface_hub import ModelCard
from prefect import get_client
from prefect.client.schemas.objects import State
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry
from prefect.testing.utilities import prefect_test_harness

from flows.fuse import fuse_models
from flows.publish import publish_model
from flows.recipe import load_recipe
from tasks.artifacts import Runtime
from tasks.corpora.documents import text_id
from tasks.library.lineage import Library
from tasks.library.tracing import trace_document
from tasks.publishing.destinations import Folder
from tasks.running.progress import Event, listening
from tasks.storage.store import MANIFEST, open_store
from tests.conftest import TEXTS, ModelFactory
from tests.flows.conftest import Bench, write_bench


@dataclass(frozen=True)
class Run:
    """A recipe with its store, and how a run of it ended."""

    bench: Bench
    parameters: dict[str, Any]
    state: State[Any]

    @property
    def id(self) -> UUID:
        assert self.state.state_details.flow_run_id is not None
        return self.state.state_details.flow_run_id


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_llama: ModelFactory, tiny_neox: ModelFactory) -> Run:
    """A run that computed everything."""
    bench = write_bench(tmp_path_factory.mktemp("fuse") / "bench", tiny_llama(), tiny_neox(seed=2))
    return run(bench)


@pytest.fixture
def copy(done: Run, tmp_path: Path) -> Bench:
    """The same recipe with a store of its own, to be harmed."""
    shutil.copytree(done.bench.root, tmp_path / "store")
    shutil.copy(done.bench.recipe, tmp_path / "recipe.yaml")
    return Bench(tmp_path)


def run(bench: Bench) -> Run:
    parameters = {"recipe": load_recipe(str(bench.recipe)), "runtime": Runtime(root=str(bench.root), device="cpu")}
    return Run(bench, parameters, fuse_models(**parameters, return_state=True))


def retry(failed: Run) -> State[Any]:
    """The state that the flow run ends in when it is scheduled and taken up again."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(failed.id, AwaitingRetry(), force=True)
        flow_run = client.read_flow_run(failed.id)
    run_flow(fuse_models, flow_run=flow_run, parameters=failed.parameters, return_type="state")
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(failed.id).state
    assert state is not None
    return state


def artifacts_of(flow_run_id: UUID) -> dict[str, Any]:
    """Data of the artifacts on the run's page, by key; the latest of each."""
    asked = {"artifacts": {"flow_run_id": {"any_": [str(flow_run_id)]}}, "sort": "CREATED_DESC"}
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/filter", json=asked).json()
    return {artifact["key"]: artifact["data"] for artifact in reversed(found)}


def test_the_page_shows_shards_quality_comparison_and_lineage(done: Run) -> None:
    assert done.state.is_completed()
    page = artifacts_of(done.id)
    assert page.keys() == {"bench-shards", "bench-quality", "bench-comparison", "bench-lineage"}
    shards = json.loads(page["bench-shards"])
    assert [row["shard"] for row in shards] == ["001", "002"]
    assert list(shards[0]) == ["shard", "extract student", "extract teacher", "align teacher", "fuse"]
    assert {cell.split()[0] for row in shards for name, cell in row.items() if name != "shard"} == {"computed"}
    quality = json.loads(page["bench-quality"])
    assert [row["model"] for row in quality] == ["student", "teacher"]
    assert quality[1]["rows won"] == "100.0%"
    assert "bits per byte" in page["bench-comparison"]
    report = page["bench-comparison"].rsplit("`", 2)[1]
    assert Path(report).read_text().startswith("<!doctype html>")
    picture = base64.b64decode(page["bench-lineage"].split("base64,")[1].split(")")[0]).decode()
    assert {"extract student", "extract teacher", "align teacher"} <= set(re.findall(r"<title>([^:<]+):", picture))


def test_the_others_go_on_and_a_retry_computes_only_what_failed(copy: Bench) -> None:
    for step in ("align", "fuse"):
        for mark in (copy.root / step).glob(f"*/{MANIFEST}"):
            mark.unlink()
    damaged = sorted((copy.root / "extract").iterdir())[0]
    file = next(damaged.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])

    failed = run(copy)
    assert failed.state.is_failed()
    assert failed.state.message is not None
    assert failed.state.message.startswith("1/2 shards failed: StoreError: extract/")
    assert len(list((copy.root / "fuse").glob(f"*/{MANIFEST}"))) == 1  # the other shard went on
    cells = {row["shard"]: row for row in json.loads(artifacts_of(failed.id)["bench-shards"])}
    assert sorted(row["fuse"].split()[0] for row in cells.values()) == ["computed", "not"]
    assert any(row["align teacher"].startswith("failed: StoreError") for row in cells.values())

    (damaged / MANIFEST).unlink()
    events: list[Event] = []
    with listening(events.append):
        assert retry(failed).is_completed()
    computed = sorted(event.label.split()[0] for event in events if event.state == "computed")
    assert computed == ["align", "extract", "fuse"]


def test_many_workers_are_used_when_asked_for_in_python(copy: Bench) -> None:
    at_work: set[str] = set()
    most: list[int] = []

    def watch(event: Event) -> None:
        if event.state == "started":
            at_work.add(event.label)
            most.append(len(at_work))
        elif event.state in ("computed", "failed"):
            at_work.discard(event.label)

    shutil.rmtree(copy.root / "extract")
    runtime = Runtime(root=str(copy.root), device="cpu", max_workers=4)
    with listening(watch):
        fuse_models(load_recipe(str(copy.recipe)), runtime)
    assert max(most) > 2


def test_what_a_recipe_came_to_is_published_with_everything_known_of_it(copy: Bench, tmp_path: Path) -> None:
    runtime = Runtime(root=str(copy.root), device="cpu")
    place = tmp_path / "published"
    allow = ("gate",)  # so small a training leaves a model that says nothing, and the gate sees it
    state = publish_model(str(copy.recipe), Folder(url=str(place)), allow, runtime=runtime, return_state=True)
    assert state.is_completed(), state.message
    card = ModelCard((place / "README.md").read_text(encoding="utf-8"))
    assert "| student | target: trained on |" in card.text
    assert "| teacher | source: taught |" in card.text
    assert "Smoke gate failed" in card.text
    assert load_recipe(str(place / "recipe.yaml")).name == "bench"

    library = Library.load(open_store(runtime))
    trace = trace_document(library, text_id(TEXTS[0]))
    labels = {library.manifests[ref.address].label for ref in trace.trained}
    assert labels == {"train student fused", "train student CLM only"}
    assert trace_document(library, text_id(TEXTS[0][::-1])).trained == (), "held-out text is in no model"
