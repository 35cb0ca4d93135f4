"""Studies: what every one has, what replaces what, and each mistake named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.recipe import load_recipe
from flows.recipe_files import RecipeError
from flows.study import MAIN, MERGED, RIVAL, Study, is_study, load_study
from tasks.report.arms import CONTROLS

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a study and returns its path."""

    def write(**fields: Any) -> str:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(fields), encoding="utf-8")
        return str(path)

    return write


def names(study: Study) -> list[str]:
    arms, mergings = study.plan_arms()
    return [arm.variant.name for arm in arms] + [merging.name for merging in mergings]


def test_every_study_has_its_rivals_and_controls() -> None:
    arms, mergings = Study().plan_arms()
    assert [arm.variant.name for arm in arms[:2]] == [MAIN, RIVAL]
    teachers = {arm.variant.teacher for arm in arms if arm.variant.question == CONTROLS}
    assert teachers == {"uniform", "target", "shuffled", "unigram"}
    alone = [arm.recipe.sources for arm in arms if arm.variant.name.startswith("from ")]
    assert [[source.name for source in sources] for sources in alone] == [
        ["python-neox"],
        ["prose-llama"],
        ["cpp-gpt2"],
    ]
    original = next(arm.recipe for arm in arms if arm.variant.name == "the original")
    assert original.reference
    assert original.training.lm_weight == 0.9
    assert [merging.name for merging in mergings] == [MERGED]


def test_the_shipped_study_asks_the_questions_with_recipes_that_load() -> None:
    study = load_study("evidence")
    arms, _ = study.plan_arms()
    questions = {arm.variant.question for arm in arms}
    assert {
        "lm_weight",
        "Projection",
        "The original's choices",
        "Fusion",
        "Candidates",
        "Sources left out",
    } <= questions
    assert {len(arm.seeds) for arm in arms if arm.variant.name in (MAIN, RIVAL)} == {3}
    assert is_study("evidence")
    assert not is_study("quickstart")


def test_a_variant_is_the_base_with_its_changes(write: Write) -> None:
    path = write(
        recipe="quickstart",
        changes=["training.epochs=2"],
        seeds=[3, 4],
        variants=[
            {"name": "mixed", "changes": ["fusion={kind: avg_ce, tau: 0.5}"], "seeds": 1},
            {"name": "two", "sources": ["cpp-gpt2", "python-neox"]},
        ],
    )
    arms = {arm.variant.name: arm for arm in load_study(path).plan_arms()[0]}
    assert arms["mixed"].recipe == load_recipe("quickstart", ["training.epochs=2", "fusion={kind: avg_ce, tau: 0.5}"])
    assert (arms["mixed"].seeds, arms["two"].seeds) == ((3,), (3, 4))
    assert [source.name for source in arms["two"].recipe.sources] == ["cpp-gpt2", "python-neox"]


def test_a_variant_of_a_fixed_arms_name_replaces_it(write: Write) -> None:
    plain = names(Study())
    given = {"name": "unigram teacher", "teacher": "unigram", "changes": ["training.lm_weight=0.8"]}
    study = load_study(write(variants=[given]))
    assert names(study) == plain
    arm = next(arm for arm in study.plan_arms()[0] if arm.variant.name == "unigram teacher")
    assert arm.recipe.training.lm_weight == 0.8


def test_a_part_takes_along_what_it_needs_and_the_rival() -> None:
    part = Study(seeds=(0, 1, 2)).narrow([MERGED], 2)
    assert names(part) == [RIVAL, "from python-neox alone", "from prose-llama alone", "from cpp-gpt2 alone", MERGED]
    assert part.plan_arms()[0][0].seeds == (0, 1)


def test_a_recipe_is_looked_for_beside_the_study(write: Write, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(load_recipe("quickstart").model_dump(mode="json")))
    assert load_study(write(recipe="mine.yaml")).base == load_recipe("quickstart")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"variants": [{"name": "a", "changes": ["training.epoch=2"]}]}, "variant a: .*training.epoch: unknown key"),
        ({"variants": [{"name": "a", "sources": ["mpt"]}]}, "variant a.sources: expected some of .*, found 'mpt'"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "names of arms and models must differ, found 'a' twice"),
        ({"variants": [{"name": "target"}]}, "must differ, found 'target' twice"),
        ({"mergings": [{"name": "m", "models": ["fuse"]}]}, "expected one of fused, .*, found 'fuse'"),
        ({"only": ["k 7"]}, "expected one of .*, found 'k 7'"),
        ({"changes": ["evaluation=null"]}, "expected a recipe with `evaluation`"),
        ({"seeds": [1, 1]}, "expected seeds that differ, found 1, 1"),
        ({"variants": [{"name": "a", "teacher": "nobody"}]}, "variants.0.teacher"),
    ],
)
def test_mistakes_are_named(write: Write, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_study(write(**{"recipe": "quickstart", **fields}))


def test_a_study_taken_for_a_recipe_says_which_command_it_is_for() -> None:
    with pytest.raises(RecipeError, match="expected a recipe, found a study of one; llm-fuse compare evidence"):
        load_recipe("evidence")
