"""Several models read as one, and teachers replaced by controls, as steps over real models."""

import json
import math
from dataclasses import dataclass

import pytest
import torch

from fusion_core.alignment import ByteBoundary
from fusion_core.controls import Shuffled, Uniform
from fusion_core.distributions import TopK
from fusion_core.fusion import MinCE
from fusion_core.vocab_mapping import BytePiece
from tasks.align import align
from tasks.artifacts import EvaluationRef, ModelRef, Runtime, ShardRef
from tasks.control import control_teacher
from tasks.corpora.documents import shards_of
from tasks.corpus import CorpusSpec, Files, build_corpus
from tasks.download import download
from tasks.ensemble import EnsembleSpec, evaluate_ensemble
from tasks.evaluate import EvaluationSpec, evaluate
from tasks.evaluation.costs import COSTS
from tasks.extract import ExtractionSpec, extract
from tasks.formats.shards import read_fused
from tasks.fuse import fuse
from tasks.models.folders import LocalModel
from tasks.storage.store import open_store
from tasks.vocab import map_vocab
from tests.conftest import TEXTS, ModelFactory


@dataclass(frozen=True)
class Made:
    """Two models with different tokenizers and two shards of text."""

    runtime: Runtime
    models: list[ModelRef]
    shards: list[ShardRef]

    def nats(self, ref: EvaluationRef) -> dict[str, float]:
        entries = json.loads((open_store(self.runtime).fetch(ref) / COSTS).read_text())
        return {entry["id"]: entry["nats"] for entry in entries}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama: ModelFactory, tiny_neox: ModelFactory) -> Made:
    folder = tmp_path_factory.mktemp("ensemble")
    (folder / "texts").mkdir()
    for i, text in enumerate(TEXTS[:8]):
        (folder / "texts" / f"{i:02}.txt").write_text(text + f" Number {i}.")
    runtime = Runtime(root=str(folder / "store"), device="cpu")
    folders = [tiny_llama(seed=11), tiny_neox(seed=12, initializer_range=0.4)]
    models = [download.fn(LocalModel(path=str(path)), runtime=runtime) for path in folders]
    spec = CorpusSpec(
        documents=(Files(paths=(f"{folder}/texts/*.txt",)),), max_bytes=60, shard_bytes=400, sharding="by_size"
    )
    return Made(runtime, models, shards_of(build_corpus.fn(spec, [], runtime=runtime), runtime))


@pytest.mark.parametrize("number", [0, 1])
def test_one_model_alone_costs_what_evaluating_it_finds(made: Made, number: int) -> None:
    model = made.models[number]
    expected = made.nats(evaluate.fn(model, made.shards, EvaluationSpec(), runtime=made.runtime))
    for weighting in ("equal", "earned"):
        spec = EnsembleSpec(weighting=weighting)  # type: ignore[arg-type]
        found = made.nats(evaluate_ensemble.fn([model], made.shards, spec, runtime=made.runtime))
        assert found == pytest.approx(expected, rel=1e-5)


def test_several_models_cost_at_most_the_best_and_the_choice_of_it(made: Made) -> None:
    each = [made.nats(evaluate.fn(m, made.shards, EvaluationSpec(), runtime=made.runtime)) for m in made.models]
    spec = EnsembleSpec(weighting="earned")
    together = made.nats(evaluate_ensemble.fn(made.models, made.shards, spec, runtime=made.runtime))
    assert together.keys() == each[0].keys()
    for name, nats in together.items():
        pieces = 1 + len(TEXTS[0]) // 30  # more than a document can be cut into
        assert min(costs[name] for costs in each) - 1e-3 <= nats
        assert nats <= min(costs[name] for costs in each) + pieces * math.log(2)


def test_a_control_takes_the_place_of_a_teacher(made: Made) -> None:
    runtime, (target, source) = made.runtime, made.models
    extraction = ExtractionSpec(mode=TopK(k=6))
    own, read = (extract.fn(model, made.shards[0], extraction, runtime=runtime) for model in (target, source))
    vocab_map = map_vocab.fn(source, target, BytePiece(), runtime=runtime)
    aligned = align.fn(read, own, vocab_map, ByteBoundary(), runtime=runtime)
    fused = fuse.fn(own, [aligned], MinCE(), False, runtime=runtime)
    store = open_store(runtime)
    before = read_fused(store.fetch(fused)).dist
    made_by = {
        control.kind: control_teacher.fn(own, fused, control, runtime=runtime)
        for control in (Shuffled(), Uniform(candidates=4))
    }
    assert made_by["shuffled"] != made_by["uniform"]
    for ref in made_by.values():
        after = read_fused(store.fetch(ref)).dist
        assert torch.equal(after.present, before.present)
        assert not torch.equal(after.ids, before.ids)
