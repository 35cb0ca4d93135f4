"""`infra/prefect.yaml`: Prefect accepts it, each entrypoint is a flow, and its parameters fit that flow's form."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.cli.deploy._models import PrefectYamlModel

from flows.recipe import load_recipe
from flows.serving.register import PREFECT_YAML, Declared, declared_deployments

ROOT = "s3://bucket/prefix"
QUICKSTART = load_recipe("quickstart")
EXAMPLES: dict[str, Any] = {  # what a person fills in
    "recipe": QUICKSTART.model_dump(mode="json"),
    "source": "prose-llama",
    "study": {"recipe": "quickstart", "seeds": [0, 1]},
    "model": {"name": "m", "model": {"kind": "hub", "id": "owner/name"}},
    "what": "train/3f2a",
    "to": {"kind": "hub_repository", "id": "owner/name"},
    "corpus": QUICKSTART.corpus.model_dump(mode="json"),
}


@pytest.fixture(scope="module")
def declared() -> dict[str, Declared]:
    return {each.fields["name"]: each for each in declared_deployments(ROOT)}


def test_prefect_itself_reads_the_file() -> None:
    read = PrefectYamlModel.model_validate(yaml.safe_load(PREFECT_YAML.read_text()))
    assert {each.name for each in read.deployments} >= {
        "fuse",
        "quickstart",
        "paper-7b",
        "extract-source",
        "publish",
        "gc",
    }
    assert all(":" not in each.entrypoint for each in read.deployments)  # a path would load a second copy of the module
    assert read.pull == []


def test_given_parameters_are_valid_for_the_flow(declared: dict[str, Declared]) -> None:
    for each in declared.values():
        given = dict(each.fields["parameters"])
        for name, parameter in inspect.signature(each.flow.fn).parameters.items():
            if parameter.default is inspect.Parameter.empty and name not in given:
                given[name] = EXAMPLES[name]
        checked = each.flow.validate_parameters(given)
        assert checked["runtime"].root == ROOT


def test_a_preset_is_the_shipped_recipe(declared: dict[str, Declared]) -> None:
    given = declared["quickstart"].flow.validate_parameters(declared["quickstart"].fields["parameters"])
    assert given["recipe"] == QUICKSTART


def test_no_schedule_is_on_by_itself(declared: dict[str, Declared]) -> None:
    schedules = [s for each in declared.values() for s in each.fields.get("schedules", [])]
    assert schedules
    assert not any(s["active"] for s in schedules)


def test_nothing_is_left_to_fill_in(declared: dict[str, Declared]) -> None:
    assert "{{" not in str([each.fields for each in declared.values()])


def test_another_store_is_another_version(declared: dict[str, Declared]) -> None:
    other = {each.fields["name"]: each for each in declared_deployments("/other")}
    assert declared["fuse"].version != other["fuse"].version
    assert declared["fuse"].version == declared_deployments(ROOT)[0].version


def test_a_path_that_is_no_flow_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump({"deployments": [{"name": "x", "entrypoint": "flows.recipe.Recipe"}]}))
    with pytest.raises(ValueError, match=r"expected the dotted name of a flow, found flows\.recipe\.Recipe"):
        declared_deployments(ROOT, file)


def test_every_form_shows_its_choices_as_tabs(declared: dict[str, Declared]) -> None:
    for each in declared.values():
        assert '"oneOf"' not in json.dumps(each.schema), each.address  # Prefect's form makes an empty box of it


def test_a_preset_asks_nothing_and_others_ask_what_they_lack(declared: dict[str, Declared]) -> None:
    required = {name: each.schema["required"] for name, each in declared.items()}
    assert required["quickstart"] == required["paper-7b"] == required["gc"] == []
    assert required["fuse"] == ["recipe"]
    assert set(required["extract-source"]) == {"recipe", "source"}
