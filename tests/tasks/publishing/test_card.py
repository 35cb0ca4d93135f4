"""The model card: read back by the hub's own reader, escaped, complete."""

import dataclasses
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tasks.artifacts import ModelRef, Runtime
from tasks.library.lineage import Library
from tasks.publishing.card import write_card
from tasks.publishing.provenance import Provenance, read_provenance
from tasks.report import report
from tasks.storage.store import open_store
from tests.tasks.publishing.test_provenance import Bench, merge
from tests.tasks.report.conftest import build_run

HOSTILE = "<img src=x onerror=alert(1)> | a\n\n# b `c` [d](http://e)"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Provenance:
    run = build_run(Runtime(root=str(tmp_path_factory.mktemp("card"))), fused_bits=(2.0, 2.9, 2.2))
    report.fn(**run.arguments, runtime=run.runtime, label="report")
    fused = next(row.model for row in run.rows if row.role == "fused")
    return read_provenance(Library.load(open_store(run.runtime)), fused)


def bench_card(tmp_path: Path, *, merged: bool = False) -> ModelCard:
    bench = Bench(Runtime(root=str(tmp_path)))
    a, b = bench.model("a", "mit"), bench.model("b")
    model: ModelRef = merge.fn([b, a], runtime=bench.runtime) if merged else bench.fuse(a, [b])
    return ModelCard(write_card(bench.read(model)))


def test_the_header_is_what_the_hub_understands(tmp_path: Path) -> None:
    data = bench_card(tmp_path).data
    assert data.base_model == ["owner/a", "owner/b"]  # the target first, its licence inherited
    assert data.to_dict()["base_model_relation"] == "finetune"
    assert data.license == "mit"
    assert data.tags == ["llm-fuse", "knowledge-fusion", "distillation"]
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")


def test_a_merge_says_that_it_is_one(tmp_path: Path) -> None:
    data = bench_card(tmp_path, merged=True).data
    assert data.base_model == ["owner/b", "owner/a"]
    assert data.to_dict()["base_model_relation"] == "merge"
    assert data.tags == ["llm-fuse", "merge"]


def test_results_are_listed_one_per_domain(evaluated: Provenance) -> None:
    results = ModelCard(write_card(evaluated)).data.eval_results
    assert results is not None
    found = {result.dataset_config: result.metric_value for result in results}
    assert evaluated.evaluated is not None
    fused = evaluated.evaluated.comparison.fused
    assert found == dict(zip(["code", "prose", "cpp"], [round(i.estimate, 4) for i in fused.domains], strict=True))


def test_the_body_has_every_section_with_intervals_and_regressions(evaluated: Provenance) -> None:
    text = ModelCard(write_card(evaluated)).text
    titles = ["Models it was made from", "Text it learned from", "Held-out text", "Against its rivals", "Training"]
    titles += ["Where it is worse", "Alignment", "Who taught what", "Time and environment", "How to make it again"]
    assert [t for t in titles if f"\n## {t}\n" not in text] == []
    worse = text.split("## Where it is worse")[1].split("##")[0]
    assert "- prose, against CLM only: +" in worse
    assert "| target-llama | target: trained on | made here |" in text
    assert evaluated.manifest.ref.address in text


def test_no_name_becomes_markup_or_another_cell(evaluated: Provenance) -> None:
    origins = tuple(dataclasses.replace(origin, name=HOSTILE) for origin in evaluated.origins)
    recipe = {"name": HOSTILE, "description": HOSTILE}
    card = ModelCard(write_card(dataclasses.replace(evaluated, origins=origins, recipe=recipe)))
    assert "<img" not in card.text
    assert "\n# b" not in card.text
    assert "](http" not in card.text.replace("\\]", "")
    rows = [line for line in card.text.splitlines() if line.startswith("| &lt;img")]
    assert len(rows) == 4
    assert all(row.replace("\\|", "").count("|") == 6 for row in rows)
    assert card.data.model_name == HOSTILE


def test_the_same_provenance_gives_the_same_card(evaluated: Provenance) -> None:
    assert write_card(evaluated) == write_card(evaluated)
