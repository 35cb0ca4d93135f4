"""What other tools read of lineage: triples that an RDF library finds, events that OpenLineage's client takes."""

import json
from datetime import datetime
from pathlib import Path

import pytest
import rdflib
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState

from tasks.artifacts import Manifest, Runtime
from tasks.library.lineage import Library
from tasks.library.lineage_export import to_openlineage, to_prov
from tasks.storage.store import open_store
from tests.tasks.publishing.test_provenance import Bench

PROV = rdflib.Namespace("http://www.w3.org/ns/prov#")
FUSE = rdflib.Namespace("urn:llm-fuse:")


@pytest.fixture
def manifests(tmp_path: Path) -> list[Manifest]:
    bench = Bench(Runtime(root=str(tmp_path)))
    model = bench.fuse(bench.model("target"), [bench.model("a")])
    library = Library.load(open_store(bench.runtime))
    return [library.manifests[ref.address] for ref in (model, *library.ancestors(model))]


def test_an_rdf_library_finds_who_was_made_from_what(manifests: list[Manifest]) -> None:
    graph = rdflib.Graph().parse(data=json.dumps(to_prov(manifests)), format="json-ld")
    derived = set(graph.subject_objects(PROV.wasDerivedFrom))
    for manifest in manifests:
        entity = FUSE[f"artifact:{manifest.ref.address}"]
        activity = graph.value(entity, PROV.wasGeneratedBy)
        assert activity is not None
        inputs = {used for made, used in derived if made == entity}
        assert inputs == set(graph.objects(activity, PROV.used))
        assert len(inputs) == len({ref.identity for ref in manifest.inputs})
        started, ended = (graph.value(activity, PROV[f"{word}AtTime"]) for word in ("started", "ended"))
        assert isinstance(started, rdflib.Literal)
        assert isinstance(ended, rdflib.Literal)
        assert isinstance(started.toPython(), datetime)
        assert started <= ended
    query = f"SELECT ?m WHERE {{ <{FUSE}artifact:{manifests[0].ref.address}> <{PROV}wasDerivedFrom>+ ?m }}"
    reached = {str(row[0]) for row in graph.query(query)}  # type: ignore[index]
    assert {f"{FUSE}artifact:{m.ref.address}" for m in manifests[1:] if m.ref.kind != "corpus"} < reached


def test_shards_are_members_of_their_corpus_and_hub_models_have_a_source(manifests: list[Manifest]) -> None:
    graph = rdflib.Graph().parse(data=json.dumps(to_prov(manifests)), format="json-ld")
    ((corpus, shard),) = graph.subject_objects(PROV.hadMember)
    assert (corpus, rdflib.RDF.type, PROV.Collection) in graph
    assert str(shard).startswith(f"{FUSE}shard:")
    sources = {str(page) for page in graph.objects(None, PROV.hadPrimarySource)}
    assert sources == {f"https://huggingface.co/owner/{name}/tree/{'a' * 40}" for name in ("target", "a")}


def test_no_context_is_looked_up(manifests: list[Manifest]) -> None:
    context = to_prov(manifests)["@context"]
    assert isinstance(context, dict)


def test_openlineages_own_client_takes_the_events(manifests: list[Manifest]) -> None:
    events = list(to_openlineage(manifests, "s3://bucket/store"))
    assert [e["eventType"] for e in events] == ["START", "COMPLETE"] * len(manifests)
    assert [e["eventTime"] for e in events[::2]] == sorted(e["eventTime"] for e in events[::2])
    names = {m.ref.address for m in manifests}
    for event in events:
        taken = RunEvent(
            eventType=RunState(event["eventType"]),
            eventTime=event["eventTime"],
            run=Run(**event["run"]),
            job=Job(namespace=event["job"]["namespace"], name=event["job"]["name"]),
            producer=event["producer"],
            inputs=[InputDataset(**each) for each in event["inputs"]],
            outputs=[OutputDataset(namespace=each["namespace"], name=each["name"]) for each in event["outputs"]],
        )
        assert {each.name for each in [*(taken.inputs or ()), *(taken.outputs or ())]} <= names
    assert len({e["run"]["runId"] for e in events}) == len(manifests)


def test_a_folder_is_a_file_url_in_openlineage(manifests: list[Manifest]) -> None:
    event = next(to_openlineage(manifests, "/srv/store"))
    assert all(each["namespace"] == "file:///srv/store" for each in event["inputs"])
