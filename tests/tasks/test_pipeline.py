"""The steps one after the other, from extraction to evaluation, on two tiny models with different tokenizers."""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fusion_core.alignment import ByteBoundary
from fusion_core.distributions import TopK
from fusion_core.fusion import MinCE
from fusion_core.vocab_mapping import BytePiece
from tasks.align import align
from tasks.artifacts import AlignedRef, FusedRef, ModelRef, Ref, Runtime, ScoredRef, ShardRef
from tasks.corpora.documents import read_documents, shards_of
from tasks.corpus import CorpusSpec, Files, build_corpus
from tasks.download import download
from tasks.evaluate import EvaluationSpec, evaluate
from tasks.extract import ExtractionSpec, extract
from tasks.formats.shards import read_aligned, read_fused, read_scored
from tasks.fuse import fuse
from tasks.models.folders import LocalModel, load_model
from tasks.runtime import TrainingRuntime
from tasks.storage.store import Store, open_store
from tasks.train import train
from tasks.training.spec import TrainingSpec
from tasks.vocab import map_vocab
from tests.conftest import TEXTS, ModelFactory

EXTRACTION = ExtractionSpec(mode=TopK(k=6))


@dataclass(frozen=True)
class Made:
    """What the pipeline left, up to fusing."""

    runtime: Runtime
    target: ModelRef
    source: ModelRef
    shards: list[ShardRef]
    own: list[ScoredRef]
    read: list[ScoredRef]
    aligned: list[AlignedRef]
    fused: list[FusedRef]

    @property
    def store(self) -> Store:
        return open_store(self.runtime)

    def facts(self, ref: Ref) -> dict[str, object]:
        manifest = self.store.manifest(ref)
        assert manifest is not None
        return manifest.facts


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama: ModelFactory, tiny_neox: ModelFactory) -> Made:
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "texts").mkdir()
    for i, text in enumerate(TEXTS[:12]):
        (folder / "texts" / f"{i:02}.txt").write_text(text + f" Number {i}.")
    runtime = Runtime(root=str(folder / "store"), device="cpu")
    target = download.fn(LocalModel(path=str(tiny_llama(seed=11))), runtime=runtime)
    source = download.fn(LocalModel(path=str(tiny_neox(seed=12, initializer_range=0.4))), runtime=runtime)
    spec = CorpusSpec(
        documents=(Files(paths=(f"{folder}/texts/*.txt",)),), max_bytes=80, shard_bytes=600, sharding="by_size"
    )
    shards = shards_of(build_corpus.fn(spec, [], runtime=runtime), runtime)
    own = [extract.fn(target, shard, EXTRACTION, runtime=runtime) for shard in shards]
    read = [extract.fn(source, shard, EXTRACTION, runtime=runtime) for shard in shards]
    maps = map_vocab.fn(source, target, BytePiece(), runtime=runtime)
    aligned = [align.fn(a, b, maps, ByteBoundary(), runtime=runtime) for a, b in zip(read, own, strict=True)]
    fused = [fuse.fn(o, [a], MinCE(), True, runtime=runtime) for o, a in zip(own, aligned, strict=True)]
    return Made(runtime, target, source, shards, own, read, aligned, fused)


def test_all_models_read_the_same_documents_in_lockstep(made: Made) -> None:
    assert len(made.shards) > 1
    for shard, own, read in zip(made.shards, made.own, made.read, strict=True):
        documents = read_documents(made.store, shard)
        for ref in (own, read):
            assert read_scored(made.store.fetch(ref)).tokens.num_docs == len(documents)


def test_aligned_and_fused_rows_are_the_targets(made: Made) -> None:
    for own, aligned, fused in zip(made.own, made.aligned, made.fused, strict=True):
        rows = read_scored(made.store.fetch(own)).dist.num_rows
        vocab_size = read_scored(made.store.fetch(own)).dist.vocab_size
        for dist in (read_aligned(made.store.fetch(aligned)).dist, read_fused(made.store.fetch(fused)).dist):
            assert (dist.num_rows, dist.vocab_size) == (rows, vocab_size)


def test_mass_is_conserved_from_extraction_to_the_teacher(made: Made) -> None:
    for fused in made.fused:
        dist = read_fused(made.store.fetch(fused)).dist
        mass = dist.tail_logprob.exp() + dist.unknown_logprob.exp()
        mass = mass.index_add(0, dist.row_of_entry, dist.logprobs.exp())
        torch.testing.assert_close(mass, torch.ones_like(mass), atol=4e-3, rtol=0)  # fp16 on disk


def test_a_deleted_shard_comes_back_with_the_same_bytes(made: Made) -> None:
    ref = made.read[1]
    before = (made.store.fetch(ref) / "scored.safetensors").read_bytes()
    made.store.delete(ref.address)
    assert made.store.manifest(ref) is None
    assert extract.fn(made.source, made.shards[1], EXTRACTION, runtime=made.runtime) == ref
    assert (made.store.fetch(ref) / "scored.safetensors").read_bytes() == before


def test_a_piece_over_the_models_window_names_the_size_that_fits(made: Made, tiny_llama: ModelFactory) -> None:
    narrow = download.fn(LocalModel(path=str(tiny_llama(max_position_embeddings=8))), runtime=made.runtime)
    with pytest.raises(
        ValueError, match=r"expected at most 1% .* tokens, the model's window is 8.* set corpus\.max_bytes to \d+"
    ):
        extract.fn(narrow, made.shards[0], EXTRACTION, runtime=made.runtime)


def test_training_is_deterministic_and_leaves_a_plain_model_folder(made: Made) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = TrainingSpec(lm_weight=0.5, learning_rate=1e-3, batch_sequences=8, epochs=1)
    trained = train.fn(made.target, made.shards, made.fused, spec, runtime=made.runtime)
    first = (made.store.fetch(trained) / "model.safetensors").read_bytes()
    made.store.delete(trained.address)
    train.fn(made.target, made.shards, made.fused, spec, runtime=made.runtime)
    folder = made.store.fetch(trained)
    assert (folder / "model.safetensors").read_bytes() == first
    assert len(AutoTokenizer.from_pretrained(folder)) == AutoModelForCausalLM.from_pretrained(folder).config.vocab_size


def test_language_modelling_alone_sees_the_same_batches_and_its_loss_is_the_librarys(made: Made) -> None:
    spec = TrainingSpec(lm_weight=0.5, learning_rate=1e-9, batch_sequences=1000, epochs=1, warmup_share=0.0)
    fused = made.facts(train.fn(made.target, made.shards, made.fused, spec, runtime=made.runtime))
    alone = made.facts(train.fn(made.target, made.shards, [], spec.without_teacher(), runtime=made.runtime))
    assert fused["batches_sha256"] == alone["batches_sha256"]
    assert fused["steps"] == alone["steps"] == 1
    model = load_model(made.store.fetch(made.target), "float32")
    nats, labels = 0.0, 0
    for own in made.own:
        tokens = read_scored(made.store.fetch(own)).tokens
        bounds = tokens.doc_offsets.tolist()
        for start, stop in itertools.pairwise(bounds):
            ids = tokens.ids[None, start:stop]
            with torch.no_grad():
                nats += float(model(input_ids=ids, labels=ids).loss) * (stop - start - 1)
            labels += stop - start - 1
    assert alone["train_loss"] == pytest.approx(nats / labels, abs=2e-5)


@pytest.mark.slow
def test_a_rising_lm_weight_lets_the_teacher_fade_out(made: Made) -> None:
    options = {"lm_weight": 0.0, "learning_rate": 1e-9, "batch_sequences": 4, "warmup_share": 0.0}
    fixed, rising = (
        made.facts(
            train.fn(
                made.target,
                made.shards,
                made.fused,
                TrainingSpec(lm_weight_schedule=schedule, **options),
                runtime=made.runtime,
            )
        )["losses"]
        for schedule in ("fixed", "rising")
    )
    alone = made.facts(
        train.fn(made.target, made.shards, [], TrainingSpec(**options).without_teacher(), runtime=made.runtime)
    )["losses"]
    steps = len(fixed)
    assert steps > 2
    for step in range(steps):
        share = step / steps
        expected = (1 - share) * fixed[step]["loss"] + share * alone[step]["loss"]
        assert rising[step]["loss"] == pytest.approx(expected, abs=1e-4)


def test_a_teacher_pulls_the_target_towards_itself(made: Made) -> None:
    """The target as a pupil of the source alone: its cross-entropy to the teacher falls below where it began."""
    teachers = [
        fuse.fn(o, [a], MinCE(), False, runtime=made.runtime) for o, a in zip(made.own, made.aligned, strict=True)
    ]
    spec = TrainingSpec(lm_weight=0.0, learning_rate=1e-2, batch_sequences=8, epochs=4, warmup_share=0.0)
    facts = made.facts(train.fn(made.target, made.shards, teachers, spec, runtime=made.runtime))
    losses = [entry["loss"] for entry in facts["losses"]]  # type: ignore[attr-defined]
    assert losses[-1] < losses[0] - 0.2


def test_teachers_of_other_shards_or_none_at_all_are_refused(made: Made) -> None:
    spec = TrainingSpec(lm_weight=0.5)
    with pytest.raises(ValueError, match=r"expected one teacher per shard, found 1 teachers and \d shards"):
        train.fn(made.target, made.shards, made.fused[:1], spec, runtime=made.runtime)
    with pytest.raises(ValueError, match=r"expected 1 without a teacher, found 0\.5"):
        train.fn(made.target, made.shards, [], spec, runtime=made.runtime)


def test_a_teacher_for_another_target_is_refused_before_any_step(made: Made) -> None:
    with pytest.raises(
        ValueError,
        match=r"shard 0: expected a teacher of \d+ rows over \d+ tokens, found .* align and fuse for this target",
    ):
        train.fn(made.source, made.shards, made.fused, TrainingSpec(lm_weight=0.5), runtime=made.runtime)


@pytest.mark.parametrize("which", ["target", "source"])
def test_evaluation_pays_for_every_byte_of_every_document_once(made: Made, which: str) -> None:
    model: ModelRef = getattr(made, which)
    ref = evaluate.fn(model, made.shards, EvaluationSpec(), runtime=made.runtime)
    costs = json.loads((made.store.fetch(ref) / "costs.json").read_text())
    texts: dict[str, str] = {}
    for shard in made.shards:
        for piece in read_documents(made.store, shard):
            texts[piece.id] = texts.get(piece.id, "") + piece.text
    assert {c["id"]: c["bytes"] for c in costs} == {name: len(text.encode()) for name, text in texts.items()}
    total = 0.0
    for scored in made.own if which == "target" else made.read:
        values = read_scored(made.store.fetch(scored))
        bounds = values.tokens.doc_offsets.tolist()
        ends = {"target": 2, "source": 0}[which]
        for start, stop in itertools.pairwise(bounds):
            has_end = stop - start > 1 and int(values.tokens.ids[stop - 1]) == ends
            total += float(values.nll[start : stop - 1 - has_end].double().sum())
    assert math.isclose(sum(c["nats"] for c in costs), total, rel_tol=1e-5)


def test_evaluation_tells_how_sure_the_model_was_and_how_right(made: Made) -> None:
    ref = evaluate.fn(made.target, made.shards, EvaluationSpec(), runtime=made.runtime)
    costs = json.loads((made.store.fetch(ref) / "costs.json").read_text())
    confidence, hits = [], 0
    for scored in made.own:
        values = read_scored(made.store.fetch(scored))
        for start, stop in itertools.pairwise(values.tokens.doc_offsets.tolist()):
            has_end = stop - start > 1 and int(values.tokens.ids[stop - 1]) == 2
            for row in range(start, stop - 1 - has_end):
                first = int(values.dist.row_offsets[row])
                confidence.append(float(values.dist.logprobs[first].double().exp()))
                hits += int(values.dist.ids[first]) == int(values.tokens.ids[row + 1])
    found = made.facts(ref)["calibration"][""]  # type: ignore[index]
    assert found["tokens"] == len(confidence)
    assert found["accuracy"] == pytest.approx(hits / len(confidence))
    assert found["mean_confidence"] == pytest.approx(sum(confidence) / len(confidence), rel=2e-3)  # fp16 on disk
    assert found["nats_per_token"] == pytest.approx(sum(c["nats"] for c in costs) / len(confidence))
    assert 0 <= found["error"] <= 1


def test_fusing_nothing_is_refused(made: Made) -> None:
    with pytest.raises(ValueError, match="expected at least one teacher, found no source"):
        fuse.fn(made.own[0], [], MinCE(), False, runtime=made.runtime)


def test_a_model_that_cannot_be_is_refused_in_a_line_from_the_training_child(made: Made, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    folder = made.store.fetch(made.target)
    for path in folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "hidden_size": 48}))
    model = download.fn(LocalModel(path=str(broken)), runtime=made.runtime)
    with pytest.raises(ValueError, match=r"its config.json describes a model that can't be"):
        train.fn(model, made.shards, [], TrainingSpec(lm_weight=1), runtime=made.runtime)


def test_the_training_childs_last_words_reach_the_error(made: Made, tmp_path: Path) -> None:
    (tmp_path / "accelerate.yaml").write_text("mixed_precision: bf16")
    training = TrainingRuntime(accelerate_config=str(tmp_path / "accelerate.yaml"))
    runtime = made.runtime.model_copy(update={"training": training})
    with pytest.raises(RuntimeError, match=r"(?s)the child ended without a model \(exit code 1\); .*distributed_type"):
        train.fn(made.target, made.shards, [], TrainingSpec(lm_weight=1, seed=77), runtime=runtime)


def test_a_bucket_gets_the_same_fingerprints_and_bytes_as_a_disk(made: Made, s3_root: str, tmp_path: Path) -> None:
    runtime = Runtime(root=s3_root, cache_dir=str(tmp_path), device="cpu")
    folder = Path(made.runtime.root).parent / "texts"
    target = download.fn(LocalModel(path=str(made.store.fetch(made.target))), runtime=runtime)
    source = download.fn(LocalModel(path=str(made.store.fetch(made.source))), runtime=runtime)
    spec = CorpusSpec(documents=(Files(paths=(f"{folder}/*.txt",)),), max_bytes=80, shard_bytes=600, sharding="by_size")
    shard = shards_of(build_corpus.fn(spec, [], runtime=runtime), runtime)[0]
    own, read = (extract.fn(model, shard, EXTRACTION, runtime=runtime) for model in (target, source))
    maps = map_vocab.fn(source, target, BytePiece(), runtime=runtime)
    aligned = align.fn(read, own, maps, ByteBoundary(), runtime=runtime)
    fused = fuse.fn(own, [aligned], MinCE(), True, runtime=runtime)
    bucket = open_store(runtime)
    for there, here in [(own, made.own[0]), (read, made.read[0]), (aligned, made.aligned[0]), (fused, made.fused[0])]:
        assert there == here
        remote, local = bucket.manifest(there), made.store.manifest(here)
        assert remote is not None
        assert local is not None
        assert {n: f.sha256 for n, f in remote.files.items()} == {n: f.sha256 for n, f in local.files.items()}


def test_a_quarantined_document_teaches_nothing_and_stops_nobody(made: Made, tiny_neox: ModelFactory) -> None:
    """A source whose embedding of one token is NaN: its documents are absent from the teacher, the others aren't."""
    folder = tiny_neox(seed=12, initializer_range=0.4)
    tokens = read_scored(made.store.fetch(made.read[0])).tokens
    only_once = [i for i, n in enumerate(torch.bincount(tokens.ids).tolist()) if n == 1]
    model = load_model(folder, "float32")
    with torch.no_grad():
        model.get_input_embeddings().weight[only_once[0]] = torch.nan
    model.save_pretrained(folder)
    source = download.fn(LocalModel(path=str(folder)), runtime=made.runtime)
    spec = EXTRACTION.model_copy(update={"max_quarantined": 1.0})
    read = extract.fn(source, made.shards[0], spec, runtime=made.runtime)
    assert len(made.facts(read)["quarantined"]) == 1  # type: ignore[arg-type]
    maps = map_vocab.fn(source, made.target, BytePiece(), runtime=made.runtime)
    aligned = align.fn(read, made.own[0], maps, ByteBoundary(), runtime=made.runtime)
    fused = read_fused(made.store.fetch(fuse.fn(made.own[0], [aligned], MinCE(), False, runtime=made.runtime)))
    bad = int(tokens.doc_of_token[(tokens.ids == only_once[0]).nonzero()[0, 0]])
    present = fused.dist.present
    of_bad = read_scored(made.store.fetch(made.own[0])).tokens.doc_of_token == bad
    assert not present[of_bad].any()
    assert present[~of_bad].any()
