"""The image, compose.yaml, the Kubernetes manifests and the job templates against their own schemas and each other."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import prefect
import pytest
import yaml
from prefect.utilities.templating import apply_values

INFRA = Path(__file__).parents[2] / "infra"
MANIFESTS = sorted(
    path for path in (INFRA / "k8s").glob("*.yaml") if not path.name.startswith(("values-", "kustomization"))
)


def _objects(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def _named(kind: str) -> set[str]:
    return {o["metadata"]["name"] for path in MANIFESTS for o in _objects(path) if o["kind"] == kind}


def test_compose_follows_its_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run([*command, str(INFRA / "compose.yaml")], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_compose_waits_for_what_is_there() -> None:
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    for service in services.values():
        for name, wait in service.get("depends_on", {}).items():
            assert wait["condition"] != "service_healthy" or "healthcheck" in services[name]


WRITTEN = sorted(path for path in INFRA.rglob("*") if path.suffix in (".yaml", ".json"))
_SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH|KEY_ID|_KEY$", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{\w+[^}]*\}|\$\(\w+\)|\{\{ *\$\w+ *\}\}")  # of compose, Kubernetes, Prefect
_CREDENTIALS = re.compile(r"://[^/@\s]*:(?P<password>[^/@\s]*)@")


def _written_secrets(value: Any, name: str = "") -> list[str]:  # Any: what YAML and JSON hold
    """What looks like a secret and is no reference to one: `NAME: value`, `{name: NAME, value: ...}`, in a URL."""
    if isinstance(value, dict):
        inner = {key: item for key, item in value.items() if key != "value"}
        found = [text for key, item in inner.items() for text in _written_secrets(item, str(key))]
        if value.get("kind") == "Secret":
            found += [f"{key} of a Secret" for part in ("data", "stringData") for key in value.get(part) or ()]
        return found + _written_secrets(value.get("value"), str(value.get("name", name)))
    if isinstance(value, list):
        return [text for item in value for text in _written_secrets(item, name)]
    if not isinstance(value, str):
        return []
    in_url = _CREDENTIALS.search(value)
    is_named = _SECRET_NAME.search(name) and name == name.upper()  # of variables; fields of schemas name secrets, too
    hidden = in_url["password"] if in_url else value if is_named else ""
    return [f"{name}: {value}"] if hidden and not _REFERENCE.fullmatch(hidden) else []


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_no_secret_is_written_down(path: Path) -> None:
    assert _written_secrets(list(yaml.safe_load_all(path.read_text()))) == []


@pytest.mark.parametrize(
    "written",
    [
        "env: [{name: AWS_SECRET_ACCESS_KEY, value: abc}]",
        "env: {PREFECT_API_AUTH_STRING: admin:abc}",
        "{kind: Secret, stringData: {password: abc}}",
        "env: [{name: URL, value: 'postgresql://prefect:abc@host/db'}]",
        "{properties: {env: {default: {HF_TOKEN: abc}}}}",
    ],
)
def test_a_secret_that_is_written_down_is_found(written: str) -> None:
    assert len(_written_secrets(yaml.safe_load(written))) == 1


def test_runs_in_docker_get_credentials_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    template = json.loads((INFRA / "job-templates" / "docker.json").read_text())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    made = dict(apply_values(template["variables"]["properties"]["env"]["default"], {}))
    assert made["AWS_SECRET_ACCESS_KEY"] == "hidden"
    assert made["HF_TOKEN"] == ""  # to the libraries that read them the same as not set


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_follow_the_schemas_of_kubernetes(path: Path) -> None:
    for found in _objects(path):
        kubernetes_validate.validate(found, "1.32", strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_pods_run_without_privileges(path: Path) -> None:
    for found in _objects(path):
        pod = found.get("spec", {}).get("template", {}).get("spec")
        if pod is None:
            continue
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]


def test_the_kustomization_names_files_that_exist() -> None:
    names = yaml.safe_load((INFRA / "k8s" / "kustomization.yaml").read_text())["resources"]
    assert {path.name for path in MANIFESTS} - {"train.yaml"} == set(names)


def test_runs_find_accounts_and_configuration() -> None:
    template = (INFRA / "job-templates" / "kubernetes.json").read_text()
    assert {"llm-fuse-run"} == _named("ServiceAccount")
    assert '"default": "llm-fuse-run"' in template
    assert json.loads(template)["variables"]["properties"]["namespace"]["default"] in _named("Namespace")
    assert "llm-fuse" in _named("ConfigMap")


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_job_templates_speak_of_what_prefects_workers_know(kind: str) -> None:
    template = json.loads((INFRA / "job-templates" / f"{kind}.json").read_text())
    known = Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"
    default = json.loads(known.read_text())[f"prefect-{kind}"][kind]["default_base_job_configuration"]
    assert set(template["job_configuration"]) <= set(default["job_configuration"])
    placeholders = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert placeholders == set(template["variables"]["properties"])


def test_the_job_made_from_the_template_follows_the_schemas_of_kubernetes() -> None:
    template = json.loads((INFRA / "job-templates" / "kubernetes.json").read_text())
    values = {name: field.get("default") for name, field in template["variables"]["properties"].items()}
    values |= {"command": ["prefect", "flow-run", "execute"], "env": [{"name": "A", "value": "b"}]}
    kubernetes_validate.validate(
        apply_values(template["job_configuration"]["job_manifest"], values), "1.32", strict=True
    )


def test_the_image_follows_the_linters_rules() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    checked = subprocess.run([hadolint, INFRA / "Dockerfile"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert "USER 10001" in (INFRA / "Dockerfile").read_text()


def test_images_are_built_from_what_the_build_is_given() -> None:
    lines = (INFRA.parent / ".dockerignore").read_text().split()
    given = {line[1:] for line in lines if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    assert {name for names in copied for name in names.split()} == given
    assert all((INFRA.parent / name).exists() for name in given)
