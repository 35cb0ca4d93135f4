"""`register`: a Prefect server learns of the deployments in `infra/prefect.yaml`, their pools, limits and automations.

    python -m flows.serving.register --root s3://bucket/prefix

What is there and hasn't changed isn't touched, and schedules, limits and automations keep what was set in the UI.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    GlobalConcurrencyLimitCreate,
    WorkPoolCreate,
)
from prefect.client.schemas.objects import ConcurrencyOptions
from prefect.client.schemas.schedules import SCHEDULE_TYPES
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.flows import Flow
from prefect.utilities.templating import apply_values
from pydantic import TypeAdapter

from flows.cli.launch import ROOT_VARIABLE
from flows.recipe import load_recipe
from flows.serving.form import form_schema
from flows.serving.server import wait_for
from infra.automations import NOTIFY_VARIABLE, register_automations

PREFECT_YAML = Path(__file__).parents[2] / "infra" / "prefect.yaml"  # beside `flows`, in a checkout and installed
GPU_SLOTS = "gpu-slots"
_RECIPE = re.compile(r"\{\{ *recipes\.(\w+) *\}\}")


@dataclass(frozen=True)
class Declared:
    """One deployment as the file declares it, with its placeholders filled in."""

    fields: dict[str, Any]  # Any: what the file holds
    flow: Flow[..., Any]

    @property
    def address(self) -> str:
        """The name that Prefect knows it by."""
        return f"{self.flow.name}/{self.fields['name']}"

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of its form. Quick run starts at once where nothing is required that isn't given."""
        schema = form_schema(self.flow)
        schema["required"] = [name for name in schema.get("required", ()) if name not in self.fields["parameters"]]
        return schema

    @property
    def version(self) -> str:
        """A digest of all that is declared: with the same one there is nothing to register."""
        text = json.dumps([self.fields, self.schema], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def declared_deployments(root: str, file: Path = PREFECT_YAML) -> list[Declared]:
    """The deployments of the file, for a store at `root`; imports their flows."""
    text = file.read_text(encoding="utf-8")
    recipes = {name: load_recipe(name).model_dump(mode="json") for name in sorted(set(_RECIPE.findall(text)))}
    before = os.environ.get(ROOT_VARIABLE)
    os.environ[ROOT_VARIABLE] = root  # `{{ $NAME }}`, as `prefect deploy` reads it
    try:
        filled = [apply_values(d, {"recipes": recipes}) for d in yaml.safe_load(text)["deployments"]]
    finally:
        os.environ.pop(ROOT_VARIABLE) if before is None else os.environ.update({ROOT_VARIABLE: before})
    return [Declared(fields, _flow_at(fields["entrypoint"])) for fields in filled]


def register(root: str, gpu_slots: int) -> list[str]:
    """Registers everything at the server of `PREFECT_API_URL`; the addresses of the deployments."""
    deployments = declared_deployments(root)
    with get_client(sync_client=True) as client:
        for pool in sorted({declared.fields["work_pool"]["name"] for declared in deployments}):
            _create_pool(client, pool)
        _create_limit(client, GPU_SLOTS, gpu_slots)
        for declared in deployments:
            _deploy(client, declared)
    register_automations(os.environ.get(NOTIFY_VARIABLE))
    return [declared.address for declared in deployments]


def _flow_at(entrypoint: str) -> Flow[..., Any]:
    module, _, name = entrypoint.rpartition(".")
    flow = getattr(import_module(module), name, None)
    if not isinstance(flow, Flow):
        raise ValueError(f"{PREFECT_YAML.name}: expected the dotted name of a flow, found {entrypoint}")
    return flow


def _create_pool(client: SyncPrefectClient, name: str) -> None:
    with contextlib.suppress(ObjectAlreadyExists):  # perhaps of another type by now: Docker, Kubernetes
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))  # its first worker brings the job template


def _create_limit(client: SyncPrefectClient, name: str, slots: int) -> None:
    try:
        client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots))


def _deploy(client: SyncPrefectClient, declared: Declared) -> None:
    fields = declared.fields
    schedules = [_schedule(item) for item in fields.get("schedules", ())]
    try:
        known = client.read_deployment_by_name(declared.address)
    except ObjectNotFound:
        pass
    else:
        if known.version == declared.version:
            return
        schedules = [
            DeploymentScheduleCreate(schedule=s.schedule, active=s.active, parameters=s.parameters, slug=s.slug)
            for s in known.schedules
        ]
    limit = fields["concurrency_limit"]
    client.create_deployment(
        flow_id=client.create_flow_from_name(declared.flow.name),
        name=fields["name"],
        version=declared.version,
        description=fields["description"],
        tags=fields["tags"],
        entrypoint=fields["entrypoint"],
        pull_steps=[],  # the flow is part of the worker's installation
        parameters=fields["parameters"],
        parameter_openapi_schema=declared.schema,
        enforce_parameter_schema=True,
        schedules=schedules,
        concurrency_limit=limit["limit"],
        concurrency_options=ConcurrencyOptions(collision_strategy=limit["collision_strategy"]),
        work_pool_name=fields["work_pool"]["name"],
        job_variables=fields["work_pool"].get("job_variables"),
    )


def _schedule(item: dict[str, Any]) -> DeploymentScheduleCreate:
    given = dict(item)
    active, slug = given.pop("active", True), given.pop("slug", None)
    return DeploymentScheduleCreate(
        schedule=TypeAdapter(SCHEDULE_TYPES).validate_python(given), active=active, slug=slug
    )


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.serving.register", description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--gpu-slots", type=int, default=1)
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="for the server to answer")
    chosen = parser.parse_args()
    wait_for(os.environ["PREFECT_API_URL"], chosen.wait)
    register(chosen.root, chosen.gpu_slots)


if __name__ == "__main__":
    _main()
