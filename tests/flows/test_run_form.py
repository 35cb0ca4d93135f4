"""The form that Prefect makes of the flow's parameters, and what it says of a wrong one."""

import copy
import json
import re
from typing import Any

import pytest
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.fuse import fuse_models
from flows.plan import plan_recipe
from flows.recipe import Recipe, RecipeFile, load_recipe
from flows.recipe_files import RecipeError
from flows.serving.form import form_schema
from tasks.artifacts import Runtime

SCHEMA: dict[str, Any] = form_schema(fuse_models)
KIND = re.compile(r'"const": "(\w+)"')
QUICKSTART: dict[str, Any] = load_recipe("quickstart").model_dump(mode="json")


def changed(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    recipe = copy.deepcopy(QUICKSTART)
    node: Any = recipe
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return recipe


def test_every_field_says_what_it_is_and_means() -> None:
    silent = [
        f"{model}.{name}"
        for model, schema in SCHEMA["definitions"].items()
        for name, field in schema.get("properties", {}).items()
        if name != "kind" and not (field.get("title") and field.get("description"))
    ]
    assert silent == []
    assert all(parameter["description"] for parameter in SCHEMA["properties"].values())


def test_only_what_has_no_answer_is_asked_for() -> None:
    assert SCHEMA["required"] == ["recipe"]
    recipe = SCHEMA["definitions"]["Recipe"]
    assert recipe["required"] == ["target", "sources", "corpus"]
    assert all("default" in field for name, field in recipe["properties"].items() if name not in recipe["required"])
    assert SCHEMA["definitions"]["RecipeFile"].get("required", []) == []


def tabs_of(field: dict[str, Any]) -> list[str]:
    return [tab["$ref"].rsplit("/", 1)[1] for tab in field["anyOf"]]


def test_choices_are_tabs() -> None:
    """Of `oneOf` the form makes an empty box for JSON."""
    fields = SCHEMA["definitions"]["Recipe"]["properties"]
    assert tabs_of(SCHEMA["properties"]["recipe"]) == ["RecipeFile", "Recipe"]
    assert tabs_of(fields["fusion"])[:3] == ["MinCE", "AvgCE", "StaticWeights"]
    assert "oneOf" not in json.dumps(SCHEMA)


def test_every_kind_of_a_choice_is_offered_once() -> None:
    definitions = SCHEMA["definitions"]
    offered = {kind for d in definitions.values() for kind in d["properties"].get("kind", {}).get("enum", ())}
    assert offered == set(KIND.findall(json.dumps(parameter_schema(fuse_models).model_dump()["definitions"])))
    assert len(offered) > 20
    for node in choices(SCHEMA):
        shown = [definitions[tab] for tab in tabs_of(node)]
        kinds = [kind for tab in shown for kind in tab["properties"].get("kind", {}).get("enum", ())]
        assert len(set(kinds)) == len(kinds)


def test_the_form_finds_the_tab_of_every_kind_by_the_fields_it_has() -> None:
    """As the form does it: the first of those that share the most fields with the value."""
    definitions = SCHEMA["definitions"]
    for node in choices(SCHEMA):
        fields = [set(definitions[tab]["properties"]) for tab in tabs_of(node)]
        for number, given in enumerate(fields):
            shared = [len(given & others) for others in fields]
            assert shared.index(max(shared)) == number, tabs_of(node)


def test_a_list_of_choices_has_one_box_with_the_fields_of_all() -> None:
    """The form shows tabs as a box for JSON there."""
    items = SCHEMA["definitions"]["CorpusSpec"]["properties"]["documents"]["items"]
    assert items["default"] == {"kind": "installed"}
    box = SCHEMA["definitions"][items["$ref"].removeprefix("#/definitions/")]
    assert box["properties"]["kind"]["enum"] == ["installed", "hub_dataset", "files"]
    assert box["properties"]["paths"]["description"].startswith("`files`, needed: Files or globs")
    assert "enum" not in box["properties"]["split"]  # one kind has a list for it, another takes any
    assert not any("default" in field for field in box["properties"].values())  # the form would send all of them


def choices(schema: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    left: list[Any] = [schema]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            if all("$ref" in tab for tab in node.get("anyOf", [{}])):
                found.append(node)
            left += node.values()
        elif isinstance(node, list):
            left += node
    assert found
    return found


@pytest.mark.parametrize(
    "recipe", [QUICKSTART, {"source": "quickstart"}, {"source": "s3://b/r.yaml", "changes": ["a=1"]}]
)
def test_the_server_takes_a_recipe_or_its_place(recipe: dict[str, Any]) -> None:
    validate({"recipe": recipe}, SCHEMA, raise_on_error=True)
    given = fuse_models.validate_parameters({"recipe": recipe})["recipe"]
    assert isinstance(given, RecipeFile if "source" in recipe else Recipe)


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("training", "learning_rate"), -1, "recipe.training.learning_rate"),
        (("corpus", "shard_bytes"), "many", "recipe.corpus.shard_bytes"),
        (("sources",), [], "recipe.sources"),
        (("fusion", "kind"), "no such", "recipe.fusion"),
        (("extraction", "mode", "k"), 0, "recipe.extraction.mode"),
        (("corpus", "documents", 0), {"kind": "files"}, "recipe.corpus.documents"),
        (("corpus", "documents", 0), {"kind": "installed", "paths": ["a"]}, "recipe.corpus.documents"),
    ],
)
def test_the_server_names_the_wrong_field(path: tuple[str, ...], value: object, where: str) -> None:
    with pytest.raises(ValidationError, match=f"field '{where}"):
        validate({"recipe": changed(path, value)}, SCHEMA, raise_on_error=True)


def test_an_address_with_a_password_is_refused_before_it_is_stored() -> None:
    recipe = {"source": "https://me:hidden@example.com/recipe.yaml"}
    with pytest.raises(ValidationError, match=r"field 'recipe"):
        validate({"recipe": recipe}, SCHEMA, raise_on_error=True)
    with pytest.raises(ParameterTypeError, match=r"expected an address without credentials") as refused:
        fuse_models.validate_parameters({"recipe": recipe})
    assert "hidden" not in str(refused.value)
    validate({"recipe": {"source": "s3://bucket/a@b.yaml"}}, SCHEMA, raise_on_error=True)


def test_stars_are_shown_as_they_are() -> None:
    """Outside of code the form reads a pair of them as emphasis."""
    texts = re.findall(r'"description": "((?:[^"\\]|\\.)*)"', json.dumps(SCHEMA))
    assert [text for text in texts if "*" in re.sub(r"`[^`]*`", "", text)] == []


def test_what_the_server_can_not_know_is_told_by_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ParameterTypeError, match=r"recipe\.trainng: Extra inputs are not permitted"):
        fuse_models.validate_parameters({"recipe": changed(("trainng",), 3)})
    with pytest.raises(ParameterTypeError, match=r"names of target, sources.* must differ"):
        fuse_models.validate_parameters({"recipe": changed(("target", "name"), "fused")})


def test_a_named_recipe_is_the_recipe_with_its_changes() -> None:
    named = RecipeFile(source="quickstart", changes=("training.epochs=3", "name=mine"))
    assert named.load() == load_recipe("quickstart", ["training.epochs=3", "name=mine"])
    assert (named.name, RecipeFile(source="s3://bucket/paper-7b.yaml").name) == ("quickstart", "paper-7b")
    with pytest.raises(RecipeError, match=r"or one of .*quickstart"):
        RecipeFile(source="no-such").load()


def test_a_flow_takes_both(tmp_path: Any) -> None:
    runtime = Runtime(root=str(tmp_path))
    recipe = load_recipe("quickstart")
    assert plan_recipe(recipe, runtime) == plan_recipe(RecipeFile(), runtime)
