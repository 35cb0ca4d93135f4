"""A shard in chunks: the same rows as in one, and a killed attempt's chunks are gone on with."""

import hashlib
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_core.distributions import Sampled, TopK
from tasks.artifacts import ModelRef, Runtime, ScoredRef, ShardRef
from tasks.corpora.documents import Document, shards_of
from tasks.corpus import CorpusSpec, Files, build_corpus
from tasks.download import download
from tasks.engines import EndpointEngine, ModelScorer, TransformersEngine
from tasks.engines.chunks import cut_chunks
from tasks.extract import ExtractionSpec, extract, first_key_of
from tasks.formats.shards import SCORED, read_scored
from tasks.models.folders import LocalModel
from tasks.storage.store import Store, open_store
from tests.conftest import TEXTS, ModelFactory


@pytest.fixture
def chunk_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the size of chunks, so that short texts make many."""
    return lambda size: monkeypatch.setattr("tasks.extract.cut_chunks", partial(cut_chunks, chunk_bytes=size))


@pytest.fixture
def inputs(tmp_path: Path, tiny_llama: ModelFactory) -> tuple[Runtime, ModelRef, ShardRef]:
    """A disk's store with a model and a shard of eight documents."""
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(TEXTS[:8]):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number} {text}")
    runtime = Runtime(root=str(tmp_path / "store"), device="cpu", batch_tokens=128)
    spec = CorpusSpec(documents=(Files(paths=(f"{tmp_path}/texts/*.txt",)),))
    corpus = build_corpus.fn(spec, [], runtime=runtime)
    model = download.fn(LocalModel(path=str(tiny_llama(seed=2))), runtime=runtime)
    return runtime, model, shards_of(corpus, runtime)[0]


def _stored(store: Store, ref: ScoredRef) -> bytes:
    return (store.fetch(ref) / SCORED).read_bytes()


def _fail_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> list[int]:
    """Lets a model end with an error after so many batches; returns the list that will hold a number for each one."""
    score, seen = ModelScorer._score, list[int]()

    def failing(self: ModelScorer, *args: Any) -> Any:
        if len(seen) == batches:
            raise OSError("the machine is gone")
        seen.append(len(seen))
        return score(self, *args)

    monkeypatch.setattr(ModelScorer, "_score", failing)
    return seen


def test_documents_are_cut_in_order_by_their_bytes() -> None:
    documents = [Document(id=str(n), text="é" * n, domain="") for n in (1, 2, 9, 1, 1)]
    assert [[d.id for d in chunk] for chunk in cut_chunks(documents, 6)] == [["1", "2"], ["9"], ["1", "1"]]
    assert cut_chunks([], 6) == [[]]


@pytest.mark.parametrize("mode", [TopK(k=4), Sampled(n=3)], ids=lambda mode: mode.kind)
def test_chunks_change_no_row_beyond_rounding(
    mode: TopK | Sampled, inputs: tuple[Runtime, ModelRef, ShardRef], chunk_bytes: Callable[[int], None]
) -> None:
    runtime, model, shard = inputs
    spec, store = ExtractionSpec(mode=mode), open_store(runtime)
    whole = read_scored(store.fetch(extract.fn(model, shard, spec, runtime=runtime)))
    store.delete(extract.fn(model, shard, spec, runtime=runtime).address)
    chunk_bytes(200)
    ref = extract.fn(model, shard, spec, runtime=runtime)
    chunked, manifest = read_scored(store.fetch(ref)), store.manifest(ref)
    assert manifest is not None
    assert manifest.facts["chunks"] > 3
    assert torch.equal(chunked.tokens.ids, whole.tokens.ids)
    assert torch.equal(chunked.tokens.doc_offsets, whole.tokens.doc_offsets)
    assert torch.equal(chunked.dist.row_offsets, whole.dist.row_offsets)
    torch.testing.assert_close(chunked.nll, whole.nll, atol=2e-3, rtol=0, equal_nan=True)  # stored to 1/1024
    torch.testing.assert_close(chunked.dist.logprobs, whole.dist.logprobs, atol=2e-3, rtol=0)  # a step of fp16


def test_the_random_draws_of_shards_have_keys_of_their_own() -> None:
    shards = [
        ShardRef(
            step="build_corpus",
            fingerprint="0" * 16,
            index=n,
            digest=hashlib.sha256(bytes([n % 256, n >> 8])).hexdigest(),
        )
        for n in range(5_000)
    ]
    keys = sorted(map(first_key_of, shards))
    assert min(after - before for before, after in itertools.pairwise(keys)) > 10**8  # rows of a shard
    assert keys[0] >= 0
    assert keys[-1] + 10**12 < 2**63


@pytest.mark.parametrize(
    ("engine", "spread", "count"),
    [
        (TransformersEngine(), False, 1),
        (TransformersEngine(), True, None),
        (EndpointEngine(url="http://127.0.0.1/v1", served_model="a"), True, 0),
    ],
)
def test_an_extraction_takes_the_devices_that_its_engine_needs(
    engine: TransformersEngine | EndpointEngine, spread: bool, count: int | None
) -> None:
    assert callable(extract.on_device)
    spec = ExtractionSpec(engine=engine)
    assert extract.on_device(model=None, shard=None, spec=spec, runtime=Runtime(spread=spread)) == count


@pytest.mark.parametrize("batches", [1, 3, 5])
def test_a_killed_shard_goes_on_after_its_last_chunk_and_has_the_same_bytes(
    batches: int,
    inputs: tuple[Runtime, ModelRef, ShardRef],
    chunk_bytes: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime, model, shard = inputs
    store, spec = open_store(runtime), ExtractionSpec(mode=TopK(k=4))
    chunk_bytes(100)
    with monkeypatch.context() as patch:
        in_all = _fail_after(patch, batches=-1)
        ref = extract.fn(model, shard, spec, runtime=runtime)
    undisturbed, manifest = _stored(store, ref), store.manifest(ref)
    store.delete(ref.address)
    with monkeypatch.context() as patch:
        _fail_after(patch, batches)
        with pytest.raises(OSError, match="the machine is gone"):
            extract.fn(model, shard, spec, runtime=runtime)
    assert store.names(f"{ref.address}/partial")
    with monkeypatch.context() as patch:
        again = _fail_after(patch, batches=-1)
        assert extract.fn(model, shard, spec, runtime=runtime) == ref
    assert len(again) == len(in_all) - batches  # a chunk is a batch here
    assert _stored(store, ref) == undisturbed
    resumed = store.manifest(ref)
    assert manifest is not None
    assert resumed is not None
    assert resumed.facts == {**manifest.facts, "chunks_resumed": batches}
    assert store.names(ref.address) == sorted(["MANIFEST.json", resumed.owner])
