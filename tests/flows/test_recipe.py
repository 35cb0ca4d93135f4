"""Recipes: what is shipped loads, overrides reach every field, and each mistake gets one line that names its field."""

from pathlib import Path

import pytest

from flows.recipe import Recipe, load_recipe, to_yaml
from flows.recipe_files import RECIPES, RecipeError
from flows.study import is_study

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml") if not is_study(path.stem))


def test_the_paper_a_modern_set_and_the_quickstart_are_shipped() -> None:
    assert {"fusellm_7b", "modern_8b", "quickstart"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    written = tmp_path / "again.yaml"
    written.write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(str(written)) == recipe
    assert recipe.description


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_commented(name: str) -> None:
    lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert sum("#" in line for line in lines) >= 5


def test_the_papers_numbers_are_the_papers() -> None:
    recipe = load_recipe("fusellm_7b")
    training = recipe.training
    assert recipe.target_as_teacher
    assert len(recipe.sources) == 2
    assert recipe.extraction.mode.model_dump() == {"kind": "top_k", "temperature": 1.0, "k": 10}
    assert (training.lm_weight, training.learning_rate, training.warmup_share) == (0.9, 1e-5, 0.008)
    assert (training.schedule, training.betas, training.weight_decay) == ("cosine", (0.9, 0.95), 0.1)
    assert (training.max_grad_norm, training.batch_sequences, training.epochs, training.dtype) == (
        1.0,
        128,
        1.0,
        "bfloat16",
    )


MINIMAL = """
target: {name: target, model: {kind: local, path: models/target}}
sources:
  - {name: one, model: {kind: local, path: models/one}}
corpus:
  documents:
    - {kind: files, paths: [texts/*.txt]}
"""


@pytest.fixture
def minimal(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return str(path)


def test_defaults_are_enough_for_everything_but_models_and_text(minimal: str) -> None:
    recipe = load_recipe(minimal)
    assert recipe.evaluation is None
    assert recipe.fusion.kind == "min_ce"


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("training.lm_weight=0.8", ("training", "lm_weight"), 0.8),
        ("training.learning_rate=1e-4", ("training", "learning_rate"), 1e-4),
        ("training.betas=[0.8, 0.9]", ("training", "betas"), (0.8, 0.9)),
        ("sources.0.name=first", ("sources", 0, "name"), "first"),
        ("corpus.documents.0.paths.0=other/*.txt", ("corpus", "documents", 0, "paths"), ("other/*.txt",)),
        ("fusion.kind=avg_ce", ("fusion", "kind"), "avg_ce"),
        ("description=a: b", ("description",), None),
        ("name=renamed", ("name",), "renamed"),
    ],
)
def test_overrides_reach_nested_fields(
    minimal: str, override: str, path: tuple[str | int, ...], expected: object
) -> None:
    if expected is None:
        with pytest.raises(RecipeError, match="description"):
            load_recipe(minimal, [override])
        return
    value: object = load_recipe(minimal, [override])
    for part in path:
        value = value[part] if isinstance(part, int) else getattr(value, part)  # type: ignore[index]
    assert value == expected


def test_another_kind_drops_the_old_kinds_fields(minimal: str) -> None:
    recipe = load_recipe(minimal, ["fusion.kind=avg_ce", "fusion.tau=0.5", "fusion.kind=min_ce"])
    assert recipe.fusion.kind == "min_ce"


def test_the_last_override_wins(minimal: str) -> None:
    assert load_recipe(minimal, ["training.epochs=2", "training.epochs=3"]).training.epochs == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lm_weight=1.5", r"training\.lm_weight: .*less than or equal to 1, found 1\.5"),
        ("training.lm_weight=-0.1", r"training\.lm_weight: .*greater than or equal to 0, found -0\.1"),
        ("training.lm_weight=.nan", r"training\.lm_weight: .*found nan"),
        ("training.lm_wieght=0.5", r"training\.lm_wieght: unknown key"),
        ("nonsense=1", r"nonsense: unknown key"),
        ("fusion.kind=voting", r"fusion\.kind: expected one of 'min_ce'.*, found 'voting'"),
        ("sources=[]", r"sources: expected at least 1, found 0"),
        ("sources.0.model.pth=x", r"sources\.0\.model\.pth: unknown key"),
        ("target.model=models/target", r"target\.model: expected a mapping with a kind, found 'models/target'"),
        ("sources.0.name=target", r"names of target.* must differ, found target twice"),
        ("min_shards=0", r"min_shards: .*found 0"),
        ("corpus.documents=[]", r"corpus\.documents: expected at least 1, found 0"),
        ("sources.1.name=x", r"--set sources\.1\.name: .*found a list of 1 \(from 0 on\)"),
        ("sources.one.name=x", r"--set sources\.one\.name: .*'one'"),
        ("name.first=x", r"name: .*found \{'first': 'x'\}"),
        ("training.lm_weight", r"--set training\.lm_weight: expected key\.path=value"),
        ("training.lm_weight=[", r"--set training\.lm_weight: expected a YAML value, found '\['"),
    ],
)
def test_mistakes_name_their_field(minimal: str, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(minimal, [override])


def test_all_wrong_fields_are_named_at_once(minimal: str) -> None:
    with pytest.raises(RecipeError, match=r"lm_weight.*; .*epochs"):
        load_recipe(minimal, ["training.lm_weight=2", "training.epochs=0"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "expected a mapping of fields, found list"),
        ("", "expected a mapping of fields, found NoneType"),
        ("name: [\n", "expected YAML, found"),
        ("name: fusion\n", r"target: missing.*sources: missing.*corpus: missing"),
    ],
)
def test_files_that_hold_no_recipe_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path))


def test_a_missing_recipe_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"expected a YAML file or one of .*fusellm_7b.*found no such file"):
        load_recipe(str(tmp_path / "absent.yaml"))


def test_a_recipe_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(RecipeError, match="expected a readable UTF-8 file"):
        load_recipe(str(path))


def test_every_field_has_a_title_for_the_form() -> None:
    schema = Recipe.model_json_schema()
    untitled = [
        f"{name}.{field}"
        for name, model in {"Recipe": schema, **schema["$defs"]}.items()
        for field, entry in model.get("properties", {}).items()
        if "title" not in entry and field != "kind"
    ]
    assert untitled == []


SCRATCH = (
    "target.model={kind: scratch, architecture: {kind: llama}, tokenizer: {kind: byte_level_bpe}, "
    "corpus: {documents: [{kind: installed}]}, training: {lm_weight: %s}}"
)


def test_a_model_from_scratch_has_no_teacher(minimal: str) -> None:
    assert load_recipe(minimal, [SCRATCH % "1"]).target.model.kind == "scratch"
    with pytest.raises(RecipeError, match=r"target\.model: .*expected training\.lm_weight 1, found 0\.9"):
        load_recipe(minimal, [SCRATCH % "0.9"])


def test_an_override_reaches_only_the_place_it_names_though_yaml_shares_anchors() -> None:
    plain, changed = load_recipe("quickstart"), load_recipe("quickstart", ["target.model.training.epochs=3"])
    assert changed.target.model.training.epochs == 3  # type: ignore[union-attr]
    assert changed.sources == plain.sources


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["extraction.mode={kind: sampled}", "training.divergence={kind: jsd}"],
            "divergence jsd needs the mass outside",
        ),
        (["extraction.mode={kind: top_k, temperature: 2}", "alignment.lookahead=1"], r"found 2\.0 in extraction\.mode"),
    ],
)
def test_choices_that_do_not_fit_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("quickstart", overrides)
