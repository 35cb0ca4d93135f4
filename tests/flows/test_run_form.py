"""The form that Prefect makes of the flow's parameters, and what it says of a wrong one."""

import copy
from typing import Any

import pytest
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.fuse import fuse_models
from flows.plan import plan_recipe
from flows.recipe import Recipe, RecipeError, RecipeFile, load_recipe
from tasks.artifacts import Runtime

SCHEMA: dict[str, Any] = parameter_schema(fuse_models).model_dump()
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


def test_choices_are_tabs() -> None:
    for field in ("vocab_mapping", "alignment", "fusion"):
        assert len(SCHEMA["definitions"]["Recipe"]["properties"][field]["oneOf"]) > 1
    tabs = [tab["$ref"].rsplit("/", 1)[1] for tab in SCHEMA["properties"]["recipe"]["oneOf"]]
    assert tabs == ["RecipeFile", "Recipe"]


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
    ],
)
def test_the_server_names_the_wrong_field(path: tuple[str, ...], value: object, where: str) -> None:
    with pytest.raises(ValidationError, match=f"field '{where}"):
        validate({"recipe": changed(path, value)}, SCHEMA, raise_on_error=True)


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
