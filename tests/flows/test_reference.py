"""`reference: true`: what it fills in, what it leaves alone, and what contradicts it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.recipe import Recipe, load_recipe, to_yaml
from flows.recipe_files import RecipeError
from fusion_core.alignment import ByteBoundary, MinEditDTW
from fusion_core.distributions import TopK
from tasks.extract import ExtractionSpec

BASE: dict[str, Any] = {
    "reference": True,
    "target": {"name": "target", "model": {"kind": "local", "path": "models/target"}},
    "sources": [{"name": n, "model": {"kind": "local", "path": f"models/{n}"}} for n in ("one", "two", "three")],
    "corpus": {"documents": [{"kind": "files", "paths": ["texts/*.txt"]}]},
    "target_as_teacher": True,
}


@pytest.fixture
def base(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return str(path)


def test_everything_left_out_becomes_the_originals(base: str) -> None:
    recipe = load_recipe(base)
    assert recipe.extraction.mode.model_dump() == {"kind": "reference_top_k", "temperature": 1.0, "k": 10}
    assert recipe.vocab_mapping.model_dump() == {"kind": "min_edit", "max_distance": None, "reference": True}
    assert recipe.alignment == MinEditDTW(reference=True)
    assert recipe.fusion.model_dump() == {
        "kind": "reference_min_ce",
        "level": "sequence",
        "block_tokens": 2048,
        "base_teaches": True,
        "trust": "all",
    }
    assert recipe.training.divergence.kind == "reference_cross_entropy"


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("extraction.mode={kind: top_k, k: 5}", "extraction.mode.k", 5),
        ("extraction.engine.dtype=float16", "extraction.engine.dtype", "float16"),
        ("alignment.first_marker=true", "alignment.first_marker", True),
        ("fusion={kind: avg_ce, level: block, score: nats_per_token}", "fusion.kind", "reference_avg_ce"),
        ("fusion={kind: min_ce, level: block, block_tokens: 512}", "fusion.block_tokens", 512),
        ("target_as_teacher=false", "fusion.base_teaches", False),
        (
            "training.divergence={kind: forward_kl, tail: renormalise}",
            "training.divergence.kind",
            "reference_kl",
        ),
        ("training.lm_weight_schedule=rising", "training.divergence.kind", "reference_cross_entropy"),
        ("alignment.kind=exact_dtw", "vocab_mapping.max_distance", 0),
    ],
)
def test_what_the_original_leaves_open_stays_a_choice(base: str, override: str, path: str, expected: object) -> None:
    value: object = load_recipe(base, [override])
    for part in path.split("."):
        value = getattr(value, part)
    assert value == expected


def test_what_was_filled_in_reads_back_as_the_same_recipe(base: str, tmp_path: Path) -> None:
    for overrides in ([], ["fusion.kind=avg_ce", "target_as_teacher=false"], ["alignment.kind=exact_dtw"]):
        recipe = load_recipe(base, overrides)
        (tmp_path / "again.yaml").write_text(to_yaml(recipe))
        assert load_recipe(str(tmp_path / "again.yaml")) == recipe


def test_values_made_in_python_are_understood_too() -> None:
    made = BASE | {"extraction": ExtractionSpec(mode=TopK(k=4)), "alignment": MinEditDTW(first_marker=True)}
    recipe = Recipe.model_validate(made)
    assert (recipe.extraction.mode.kind, recipe.extraction.mode.k) == ("reference_top_k", 4)  # type: ignore[union-attr]
    assert recipe.alignment == MinEditDTW(reference=True, first_marker=True)
    with pytest.raises(ValueError, match="reference: true fixes alignment to min_edit_dtw or exact_dtw, found byte_b"):
        Recipe.model_validate(BASE | {"alignment": ByteBoundary()})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("extraction.mode.kind=sampled", r"fixes extraction\.mode to top_k, found sampled; choose that, or reference"),
        ("vocab_mapping.kind=byte_piece", "fixes vocab_mapping to min_edit, found byte_piece"),
        ("vocab_mapping={kind: min_edit, reference: false}", r"fixes vocab_mapping\.reference to true, found false"),
        ("vocab_mapping={kind: min_edit, max_distance: 2}", r"fixes vocab_mapping\.max_distance to empty, found 2"),
        ("alignment.kind=byte_boundary", "fixes alignment to min_edit_dtw or exact_dtw, found byte_boundary"),
        ("alignment={kind: min_edit_dtw, unmatched: label}", r"fixes alignment\.unmatched to absent, found label"),
        ("fusion.kind=static_weights", "fixes fusion to min_ce or avg_ce, found static_weights"),
        ("fusion={kind: min_ce, score: bits_per_byte}", r"fixes fusion\.score to nats_per_token, found bits_per_byte"),
        ("fusion={kind: min_ce, level: token}", r"fusion\.level: .*'sequence' or 'block', found 'token'"),
        ("fusion={kind: avg_ce, tau: 0.2}", r"fusion\.tau: unknown key"),
        ("fusion={kind: min_ce, base_teaches: false}", r"fixes fusion\.base_teaches to true, found false"),
        ("fusion={kind: min_ce, trust: reward}", r"expected training\.lm_weight 0 and batch_sequences 1, found 0\.9"),
        ("training.divergence.kind=jsd", r"fixes training\.divergence to soft_cross_entropy or forward_kl, found jsd"),
        ("training.divergence={kind: forward_kl, tail: bucket}", r"fixes training\.divergence\.tail to renormalise"),
        ("alignment=min_edit_dtw", "alignment: expected a mapping with a kind, found 'min_edit_dtw'"),
        ("training=5", "training: .*found 5"),
        ("reference=sometimes", "reference: .*found 'sometimes'"),
    ],
)
def test_a_contradiction_is_refused_by_name(base: str, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(base, [override])


def test_without_the_target_exact_matches_would_leave_rows_that_the_original_fills(base: str) -> None:
    with pytest.raises(RecipeError, match=r"exact_dtw .* expected target_as_teacher true, found False"):
        load_recipe(base, ["alignment.kind=exact_dtw", "target_as_teacher=false"])


def test_a_single_rule_of_the_original_can_be_tried_alone_where_it_makes_sense(base: str) -> None:
    one = ["reference=false", "fusion={kind: reference_min_ce, base_teaches: true}"]
    assert load_recipe(base, [*one, "alignment={kind: min_edit_dtw, reference: true}"]).reference is False
    with pytest.raises(RecipeError, match=r"expected alignment\.reference true, found byte_boundary without"):
        load_recipe(base, one)
    with pytest.raises(RecipeError, match=r"expected fusion\.base_teaches to be target_as_teacher"):
        load_recipe(base, [*one, "alignment={kind: min_edit_dtw, reference: true}", "target_as_teacher=false"])


def test_the_papers_recipe_says_how(tmp_path: Path) -> None:
    choices = ["vocab_mapping.kind=min_edit", "alignment={kind: min_edit_dtw, first_marker: true}"]
    recipe = load_recipe("fusellm_7b", ["reference=true", *choices, "fusion.level=block"])
    assert recipe.fusion.base_teaches  # type: ignore[union-attr]
