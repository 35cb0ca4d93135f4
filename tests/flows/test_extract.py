"""`extract_source`: what one machine does alone, a fusion finds done."""

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import flow
from prefect.testing.utilities import prefect_test_harness

from flows.cli.launch import launch
from flows.collect_garbage import collect_garbage
from flows.corpora import build_recipe_shards
from flows.extract import extract_source
from flows.recipe import load_recipe
from tasks.artifacts import Runtime
from tasks.corpora.documents import read_documents, text_id
from tasks.library.lineage import runs
from tasks.models.folders import LocalModel
from tasks.storage.store import open_store
from tests.flows.conftest import Bench, Cli


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


def test_a_fusion_finds_the_source_done_and_nothing_of_it_is_garbage(cli: Cli, bench: Bench) -> None:
    recipe, runtime = load_recipe(str(bench.recipe)), Runtime(root=str(bench.root), device="cpu")
    scored = launch(extract_source, recipe, "teacher", runtime=runtime)
    plan = json.loads(cli("plan", bench.recipe, "--root", bench.root, "--json").out)
    counts = {row["step"]: (row["cached"], row["to_compute"]) for row in plan["steps"]}
    assert counts["extract"] == (len(scored), len(scored))  # the target has the same shards, and was not asked for
    assert not any(entry["label"].startswith("extract teacher") for entry in plan["missing"])
    assert collect_garbage.fn(runtime, min_age=0.0) == []
    assert [record.name for record in runs(open_store(runtime)).values()] == ["bench: teacher"]


def test_it_ends_as_failed_with_a_count_in_one_line(bench: Bench) -> None:
    model = load_recipe(str(bench.recipe)).sources[0].model
    assert isinstance(model, LocalModel)
    broken = shutil.copytree(model.path, bench.folder / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    recipe = load_recipe(str(bench.recipe), [f"sources.0.model.path={broken}"])
    runtime = Runtime(root=str(bench.root), device="cpu")
    state: Any = extract_source(recipe, "teacher", runtime=runtime, return_state=True)
    assert state.name == "Failed"
    assert re.fullmatch(r"(\d+)/\1 shards failed: ValueError: .+", state.message), state.message


def test_a_model_that_the_recipe_does_not_have_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="expected one of student, teacher, found 'nobody'"):
        launch(extract_source, load_recipe(str(bench.recipe)), "nobody", runtime=Runtime(root=str(bench.root)))


def test_a_corpus_leaves_out_what_its_recipe_measures_on(bench: Bench) -> None:
    held_out = (bench.texts / "held-0.txt").read_text(encoding="utf-8")
    (bench.texts / "learn-9.txt").write_text(f"copied: {held_out}", encoding="utf-8")
    runtime = Runtime(root=str(bench.root), device="cpu")

    @flow
    def read(changes: list[str]) -> list[str]:
        recipe = load_recipe(str(bench.recipe), changes)
        pieces = [p for s in build_recipe_shards(recipe, runtime) for p in read_documents(open_store(runtime), s)]
        return sorted({piece.id for piece in pieces})

    everything, kept = read([]), read(["corpus.decontamination={ngram: 3}"])
    assert set(everything) - set(kept) == {text_id(f"copied: {held_out}")}
    assert read(["corpus.decontamination={ngram: 3, max_overlap: 0.99}"]) == everything
