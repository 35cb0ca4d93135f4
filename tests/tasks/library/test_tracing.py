"""Questions to lineage, answered over stores that steps really wrote: real corpora, toy models."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from fusion_core.spec import Spec
from tasks.artifacts import CorpusRef, EvaluationRef, ModelRef, Ref, Runtime, ShardRef
from tasks.corpora.documents import list_shards, text_id
from tasks.corpus import CorpusSpec, Files, build_corpus
from tasks.library.lineage import Library
from tasks.library.tracing import Difference, compare_artifacts, trace_document
from tasks.step import Output, step
from tasks.storage.store import open_store
from tests.tasks.publishing.test_provenance import Bench, merge

TEXTS = {name: " ".join(f"{name}{number}" for number in range(30)) for name in "abc"}


class Objective(Spec):
    rate: float = 0.1
    seed: int = 0


@step(version=1)
def train(
    model: ModelRef | None, shards: list[ShardRef], spec: Objective, *, runtime: Runtime, out: Output
) -> ModelRef:
    """A model."""
    (out.dir / "weights").write_text(spec.model_dump_json())
    return out.ref(ModelRef)


@step(version=1)
def evaluate(model: ModelRef, shards: list[ShardRef], *, runtime: Runtime, out: Output) -> EvaluationRef:
    """What a model pays."""
    (out.dir / "costs").write_text("costs")
    return out.ref(EvaluationRef)


@dataclass
class Texts:
    folder: Path
    runtime: Runtime

    def corpus(self, *names: str, shard_bytes: int = 60) -> tuple[CorpusRef, list[ShardRef]]:
        paths = []
        for name in names:
            path = self.folder / f"{name}.txt"
            path.write_text(TEXTS[name])
            paths.append(str(path))
        spec = CorpusSpec(documents=(Files(paths=tuple(paths)),), max_bytes=60, shard_bytes=shard_bytes)
        made = build_corpus.fn(spec, [], runtime=self.runtime)
        return made, list_shards(open_store(self.runtime), made)

    def train(self, shards: list[ShardRef], model: ModelRef | None = None, spec: Objective | None = None) -> ModelRef:
        return train.fn(model, shards, spec or Objective(), runtime=self.runtime)

    @property
    def library(self) -> Library:
        return Library.load(open_store(self.runtime))


@pytest.fixture
def texts(runtime: Runtime, tmp_path: Path) -> Texts:
    folder = tmp_path / "texts"
    folder.mkdir()
    return Texts(folder, runtime)


def test_models_that_contain_a_document_are_found_through_its_shards(texts: Texts) -> None:
    _, learnt = texts.corpus("a", "b")
    _, other = texts.corpus("c")
    taught, untaught = texts.train(learnt), texts.train(other)
    pupil = texts.train(other, model=taught)
    measured = evaluate.fn(untaught, learnt, runtime=texts.runtime)
    found = trace_document(texts.library, text_id(TEXTS["a"]))
    assert {shard.digest for shard in found.shards} < {shard.digest for shard in learnt}
    assert found.trained == (taught,)
    assert found.inherited == (pupil,)
    assert found.read == (measured,)
    assert found.unread == ()


def test_a_model_that_learned_from_other_shards_does_not_contain_it(texts: Texts) -> None:
    _, shards = texts.corpus("a", "b")
    holding = {s.digest for s in trace_document(texts.library, text_id(TEXTS["a"])).shards}
    texts.train([shard for shard in shards if shard.digest not in holding])
    assert trace_document(texts.library, text_id(TEXTS["a"])).trained == ()


def test_a_document_is_followed_into_every_corpus_with_the_same_shard(texts: Texts) -> None:
    _, first = texts.corpus("a", "b")
    _, second = texts.corpus("a", "c")
    model = texts.train(first[:1])
    found = trace_document(texts.library, text_id(TEXTS["a"]))
    assert {shard.fingerprint for shard in found.shards} == {first[0].fingerprint, second[0].fingerprint}
    assert found.trained == (model,)


def test_an_unknown_document_is_nowhere_and_a_damaged_corpus_is_named(texts: Texts) -> None:
    corpus, shards = texts.corpus("a")
    texts.train(shards)
    assert trace_document(texts.library, "0" * 16).shards == ()
    store = open_store(texts.runtime)
    store.remove(next(p for p in store.listing() if p.startswith(corpus.address) and p.endswith("shards.json")))
    store.cache = store.cache / "another"
    found = trace_document(Library.load(store), "0" * 16)
    assert len(found.unread) == 1
    assert found.unread[0].startswith(f"{corpus}: ")


def test_a_corpus_leads_to_what_was_first_made_by_another_one_with_the_same_shards(texts: Texts) -> None:
    _, first = texts.corpus("a", "b")
    model = texts.train(first[:1])
    second, _ = texts.corpus("a", "c")
    assert model in texts.library.descendants(second)
    assert model not in texts.library.descendants(texts.corpus("c")[0])


# ---- differences -----------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Texts:
    (tmp_path / "texts").mkdir()
    return Texts(tmp_path / "texts", Runtime(root=str(tmp_path / "disk")))


def compare(texts: Texts, left: Ref, right: Ref) -> list[Difference]:
    return compare_artifacts(texts.library, left, right)


def test_a_setting_is_named_with_both_values(disk: Texts) -> None:
    _, shards = disk.corpus("a")
    left, right = disk.train(shards), disk.train(shards, spec=Objective(rate=0.2, seed=1))
    found = compare(disk, left, right)
    assert [(d.where, d.left, d.right) for d in found] == [("spec.rate", "0.1", "0.2"), ("spec.seed", "0", "1")]
    assert compare(disk, left, left) == []


def test_inputs_are_followed_to_what_differs_by_itself(disk: Texts) -> None:
    _, one = disk.corpus("a")
    _, other = disk.corpus("b")
    left = disk.train(one, model=disk.train(one))
    right = disk.train(one, model=disk.train(other))
    (found,) = compare(disk, left, right)[:1]
    assert found.where == "pins.0[0]"  # the digest of the file
    assert [name for name, _, _ in found.trail] == ["", "model", "shards[0]"]
    assert found.trail[0][1:] == (left, right)


def test_what_is_nearer_comes_first(disk: Texts) -> None:
    _, one = disk.corpus("a")
    _, other = disk.corpus("b")
    found = compare(disk, disk.train(one), disk.train(other, spec=Objective(seed=3)))
    assert [d.where for d in found][:2] == ["spec.seed", "pins.0[0]"]


def test_more_shards_or_another_shard_is_said_as_such(disk: Texts) -> None:
    _, shards = disk.corpus("a", "b")
    longer = compare(disk, disk.train(shards[:1]), disk.train(shards[:2]))
    assert [(d.where, d.left) for d in longer] == [("shards[1]", "–")]
    moved = compare(disk, disk.train(shards[:1]), disk.train(shards[1:2]))
    assert [(d.where, d.left, d.right) for d in moved] == [("shard", "0", "1")]


def test_another_step_and_a_missing_input_end_the_way(tmp_path: Path) -> None:
    bench = Bench(Runtime(root=str(tmp_path)))
    a, b = bench.model("a"), bench.model("b")
    merged = merge.fn([a, b], runtime=bench.runtime)
    store = open_store(bench.runtime)

    def found(left: Ref, right: Ref) -> list[tuple[str, str, str]]:
        return [(d.where, d.left, d.right) for d in compare_artifacts(Library.load(store), left, right)]

    assert found(merged, a) == [("step", "merge 1", "download 1")]
    assert found(a, b) == [("id", '"owner/a"', '"owner/b"')]
    gone = store.manifest(b)
    assert gone is not None
    store.withdraw(gone)
    assert found(a, b) == [("its manifest", "in the store", "–")]
