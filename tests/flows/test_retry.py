"""A run of which a shard failed, retried as the button in the UI does it: the same flow run, scheduled again."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.schemas.objects import State
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry
from prefect.testing.utilities import prefect_test_harness

from flows.fuse import fuse_models
from flows.recipe import load_recipe
from tasks.artifacts import Runtime
from tasks.progress import Event, listening
from tasks.store import MANIFEST
from tests.flows.conftest import Bench


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


def retry(flow_run_id: UUID, parameters: dict[str, object]) -> State[object]:
    """The state that the flow run ends in when it is scheduled and taken up again."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, AwaitingRetry(), force=True)
        flow_run = client.read_flow_run(flow_run_id)
    run_flow(fuse_models, flow_run=flow_run, parameters=parameters, return_type="state")
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run_id).state
    assert state is not None
    return state


def damage(root: Path) -> Path:
    """Makes one shard's distributions unreadable; its folder."""
    folder = sorted((root / "extract").iterdir())[0]
    file = next(folder.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    return folder


def test_the_others_go_on_and_a_retry_computes_only_what_failed(bench: Bench) -> None:
    recipe = load_recipe(str(bench.recipe), ["evaluation=null"])
    parameters = {"recipe": recipe, "runtime": Runtime(root=str(bench.root), device="cpu")}
    assert fuse_models(**parameters, return_state=True).is_completed()
    for step in ("align", "fuse", "train"):
        for mark in (bench.root / step).glob(f"*/{MANIFEST}"):
            mark.unlink()
    damaged = damage(bench.root)

    failed = fuse_models(**parameters, return_state=True)
    assert failed.is_failed()
    assert failed.message is not None
    assert failed.message.startswith("1/2 shards failed: StoreError: extract/")
    assert len(list((bench.root / "fuse").glob(f"*/{MANIFEST}"))) == 1  # the other shard went on

    (damaged / MANIFEST).unlink()
    events: list[Event] = []
    flow_run_id = failed.state_details.flow_run_id
    assert flow_run_id is not None
    with listening(events.append):
        assert retry(flow_run_id, parameters).is_completed()
    computed = sorted(event.label.split(" 0")[0] for event in events if event.state == "computed")
    assert [label.split()[0] for label in computed] == ["align", "extract", "fuse", "train"]
