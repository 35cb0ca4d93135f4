"""Lineage for other tools: as W3C PROV in JSON-LD, and as events of OpenLineage."""

import uuid
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from tasks.artifacts import Manifest, Ref, ShardRef
from tasks.secrets import refuse_credentials

Json = dict[str, Any]  # Any: plain JSON

_CONTEXT = {
    "prov": "http://www.w3.org/ns/prov#",
    "rdfs": "http://www.w3.org/2000/01/rdf-schema#",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
    "fuse": "urn:llm-fuse:",
}
_PRODUCER = "https://pypi.org/project/llm-fuse"
_EVENT_SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
_JOB_SCHEMA = "https://openlineage.io/spec/facets/2-0-3/JobTypeJobFacet.json#/$defs/JobTypeJobFacet"
_SIZE_SCHEMA = (
    "https://openlineage.io/spec/facets/1-0-2/OutputStatisticsOutputDatasetFacet.json"
    "#/$defs/OutputStatisticsOutputDatasetFacet"
)


def to_prov(manifests: Iterable[Manifest]) -> Json:
    """The artifacts as entities, the steps that made them as activities, the code as their agent (PROV-O, JSON-LD).

    A shard is an entity of its own, named by its content, and a member of each corpus that it was read from. A model
    of the hub has its page as the primary source. The context is in the document: no reader needs the network.
    """
    nodes: dict[str, Json] = {}
    for manifest in manifests:
        made, activity = _artifact(manifest.ref), f"fuse:run:{manifest.ref.address}:{manifest.owner}"
        agent = _agent(manifest, nodes)
        used = list(dict.fromkeys(_named(ref, nodes) for ref in manifest.inputs))
        started = datetime.fromisoformat(manifest.started_at)
        entity = nodes.setdefault(made, {"@id": made})
        entity |= {
            "@type": _type_of(entity),
            "rdfs:label": manifest.label or str(manifest.ref),
            "fuse:kind": manifest.ref.kind,
            "fuse:bytes": manifest.total_bytes,
            "prov:wasGeneratedBy": {"@id": activity},
        }
        if used:
            entity["prov:wasDerivedFrom"] = [{"@id": name} for name in used]
        if source := _hub_page(manifest):
            entity["prov:hadPrimarySource"] = {"@id": source}
        nodes[activity] = {
            "@id": activity,
            "@type": "prov:Activity",
            "rdfs:label": manifest.step,
            "prov:used": [{"@id": name} for name in used],
            "prov:startedAtTime": _time(started),
            "prov:endedAtTime": _time(started + timedelta(seconds=manifest.seconds)),
            "prov:wasAssociatedWith": {"@id": agent},
        }
    return {"@context": _CONTEXT, "@graph": list(nodes.values())}


def to_openlineage(manifests: Iterable[Manifest], root: str) -> Iterator[Json]:
    """Two events of OpenLineage per artifact, START and COMPLETE, in order of time; `root` is the namespace."""
    namespace = root if "://" in root else f"file://{root}"
    for manifest in sorted(manifests, key=lambda m: (m.started_at, m.ref.address)):
        started = datetime.fromisoformat(manifest.started_at)
        addresses = dict.fromkeys(ref.address for ref in manifest.inputs)
        size = {"_producer": _PRODUCER, "_schemaURL": _SIZE_SCHEMA, "size": manifest.total_bytes}
        event = {
            "run": {"runId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{manifest.ref.address}/{manifest.owner}"))},
            "job": {
                "namespace": "llm-fuse",
                "name": manifest.step,
                "facets": {
                    "jobType": {
                        "_producer": _PRODUCER,
                        "_schemaURL": _JOB_SCHEMA,
                        "processingType": "BATCH",
                        "integration": "LLM_FUSE",
                        "jobType": "STEP",
                    }
                },
            },
            "inputs": [{"namespace": namespace, "name": address} for address in addresses],
            "producer": _PRODUCER,
            "schemaURL": _EVENT_SCHEMA,
        }
        made = {"namespace": namespace, "name": manifest.ref.address, "outputFacets": {"outputStatistics": size}}
        yield {"eventType": "START", "eventTime": started.isoformat(), **event, "outputs": []}
        ended = started + timedelta(seconds=manifest.seconds)
        yield {"eventType": "COMPLETE", "eventTime": ended.isoformat(), **event, "outputs": [made]}


def send_events(events: Iterable[Json], url: str, key: str | None = None) -> int:
    """How many events an OpenLineage endpoint took, one POST each; `key` goes along as the bearer's.

    Events name their runs by what was made, so sending them again tells nothing new.

    Raises:
        ValueError: the address holds a secret, or the key what no header can.
        ConnectionError: the endpoint can't be reached, or refuses an event.
    """
    import httpx

    refuse_credentials(url)
    key = (key or "").strip()  # files of secrets end in a line break
    if not (key.isascii() and key.isprintable()):
        raise ValueError("OPENLINEAGE_API_KEY: expected printable ASCII characters, found others; set it anew")
    sent = 0
    with httpx.Client(headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=_SECONDS) as client:
        for event in events:
            try:
                client.post(url, json=event).raise_for_status()
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                found = f"HTTP {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else error
                raise ConnectionError(
                    f"{url}: expected an endpoint that takes OpenLineage events, found {found} after {sent} of them; "
                    "check the address and OPENLINEAGE_API_KEY"
                ) from error
            sent += 1
    return sent


_SECONDS = 30.0


def _artifact(ref: Ref) -> str:
    return f"fuse:artifact:{ref.address}"


def _named(ref: Ref, nodes: dict[str, Json]) -> str:
    """The entity's name; a shard is noted as a member of its corpus."""
    if not isinstance(ref, ShardRef):
        return _artifact(ref)
    name, corpus = f"fuse:shard:{ref.digest}", _artifact(ref)
    nodes.setdefault(name, {"@id": name, "@type": "prov:Entity", "fuse:kind": "shard", "rdfs:label": str(ref)})
    members = nodes.setdefault(corpus, {"@id": corpus, "@type": "prov:Collection"}).setdefault("prov:hadMember", [])
    if {"@id": name} not in members:
        members.append({"@id": name})
    return name


def _type_of(entity: Json) -> str:
    return "prov:Collection" if "prov:hadMember" in entity else "prov:Entity"


def _agent(manifest: Manifest, nodes: dict[str, Json]) -> str:
    code = manifest.environment.get("code", {})
    version = ":".join(str(code[part]) for part in ("version", "commit") if code.get(part)) or "unknown"
    name = f"fuse:code:{version}"
    nodes.setdefault(name, {"@id": name, "@type": "prov:SoftwareAgent", "rdfs:label": f"llm-fuse {version}"})
    return name


def _hub_page(manifest: Manifest) -> str | None:
    facts = manifest.facts
    known = isinstance(facts.get("id"), str) and isinstance(facts.get("commit"), str)
    return f"https://huggingface.co/{facts['id']}/tree/{facts['commit']}" if known else None


def _time(moment: datetime) -> Json:
    return {"@type": "xsd:dateTime", "@value": moment.isoformat()}
