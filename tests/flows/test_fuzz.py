"""Whatever stands in a recipe or on the command line: an answer in a sentence, soon, and never a traceback."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.cli import main
from flows.cli.exits import BUG
from flows.recipe import load_recipe, to_yaml
from flows.recipe_files import RECIPES, RecipeError, set_field

FEW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=150)
MINIMAL = """
target: {name: target, model: {kind: local, path: models/target}}
sources: [{name: one, model: {kind: local, path: models/one}}]
corpus: {documents: [{kind: files, paths: [texts/*.txt]}]}
"""
SHIPPED = (RECIPES / "quickstart.yaml").read_text(encoding="utf-8")
SECONDS = 5.0

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
KEYS = [
    "target",
    "sources",
    "corpus",
    "fusion",
    "training",
    "evaluation",
    "kind",
    "0",
    "1",
    "name",
    "model",
    "documents",
]
paths = st.lists(st.sampled_from(KEYS) | st.text(max_size=6), min_size=1, max_size=5).map(".".join)


def answered(path: Path, overrides: list[str]) -> None:
    """Loads a recipe; it is one, or it is refused as such."""
    clock = time.monotonic()
    with contextlib.suppress(RecipeError):
        assert to_yaml(load_recipe(str(path), overrides))
    assert time.monotonic() - clock < SECONDS


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


@MANY
@given(data=st.binary(max_size=300) | st.text(alphabet="{}[]&*<:-!?|>'\"%@`, \n#ab0.~", max_size=120).map(str.encode))
def test_any_bytes_are_a_recipe_or_refused(recipe: Path, data: bytes) -> None:
    recipe.write_bytes(data)
    answered(recipe, [])


@MANY
@given(path=paths, value=values)
def test_any_value_at_any_place_is_taken_or_refused(recipe: Path, path: str, value: object) -> None:
    data = yaml.safe_load(MINIMAL)
    node = data
    *parents, last = path.split(".")
    for key in parents:
        found = node[int(key)] if isinstance(node, list) and key.isdigit() and int(key) < len(node) else None
        found = node.get(key) if isinstance(node, dict) else found
        if not isinstance(found, dict | list):
            break
        node = found
    if isinstance(node, dict):
        node[last] = value
    recipe.write_text(yaml.safe_dump(data), encoding="utf-8")
    answered(recipe, [])


@MANY
@given(at=st.integers(0, len(SHIPPED)), cut=st.integers(0, 40), put=st.text(max_size=10))
def test_any_edit_of_a_shipped_recipe_is_taken_or_refused(recipe: Path, at: int, cut: int, put: str) -> None:
    recipe.write_text(SHIPPED[:at] + put + SHIPPED[at + cut :], encoding="utf-8", errors="replace")
    answered(recipe, [])


@MANY
@given(override=st.builds("{}={}".format, paths, values.map(str)) | st.text(max_size=40))
def test_any_override_is_taken_or_refused(recipe: Path, override: str) -> None:
    recipe.write_text(MINIMAL, encoding="utf-8")
    answered(recipe, [override])


@MANY
@given(data=values, override=st.builds("{}={}".format, paths, values.map(str)))
def test_overrides_of_anything_end(data: object, override: str) -> None:
    fields = data if isinstance(data, dict) else {"name": data}
    with contextlib.suppress(RecipeError):
        set_field(fields, override)


# ---- the command line -----------------------------------------------------------------------------------------

COMMANDS = ["plan", "report", "init", "lineage", "verify", "gc", "inspect", "evaluate", "refresh", "compare", "run"]
OPTIONS = [
    "--root",
    "--set",
    "--json",
    "--device",
    "--max-workers",
    "--runtime",
    "--target",
    "--text",
    "--min-age",
    "--only",
    "--seeds",
    "--tokenizers",
    "--corpus",
    "--tasks",
    "--limit",
    "--dry-run",
    "-v",
    "--",
    "--help",
]
# Names that lead to the network or to work that takes long are left out: what is looked for is how words are read.
letters = st.characters(exclude_characters="/~", exclude_categories=())
spoken = (
    st.text(letters, max_size=12) | st.integers().map(str) | st.sampled_from(["=", "a=b", "[", "&a [*a]", "\0", "@"])
)


@pytest.fixture
def _nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LLM_FUSE_ROOT", str(tmp_path / "store"))
    with mock.patch.dict(os.environ):
        yield


@pytest.mark.usefixtures("_nothing_here")
@FEW
@given(
    command=st.sampled_from(COMMANDS),
    words=st.lists(st.sampled_from(OPTIONS) | spoken, max_size=5).filter(lambda words: "." not in words),
)
def test_any_words_get_an_answer(command: str, words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    clock = time.monotonic()
    code = main([command, *words])
    err = capfd.readouterr().err
    assert code in (0, 1, 2), (code, err)
    assert code != BUG
    assert "-v" in words or "Traceback" not in err
    assert code == 0 or err.startswith("error: ") or "-v" in words
    assert time.monotonic() - clock < 2 * SECONDS
