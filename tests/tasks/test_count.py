"""From counted shards to an aligned one: a mapping that needs counts, through the steps, on two tiny models."""

from dataclasses import dataclass

import pytest
import torch

from fusion_core.alignment import ByteBoundary, tally_pairs
from fusion_core.distributions import TopK
from fusion_core.min_edit import CoOccurrence
from fusion_core.pair_counts import sum_counts
from fusion_core.types import Tokens
from fusion_core.vocab_mapping import BytePiece, Canonical, Statistics, VocabMapping
from tasks.align import align
from tasks.artifacts import CountsRef, ModelRef, Runtime, ScoredRef
from tasks.corpora.documents import shards_of
from tasks.corpus import CorpusSpec, Files, build_corpus
from tasks.count import count_pairs
from tasks.download import download
from tasks.extract import ExtractionSpec, extract
from tasks.formats.shards import read_aligned, read_counts, read_pair, read_scored
from tasks.models.folders import LocalModel
from tasks.storage.store import Store, open_store
from tasks.vocab import map_vocab
from tests.conftest import TEXTS, ModelFactory


@dataclass(frozen=True)
class Made:
    """Two models that have read the same shards, and the counts of each."""

    runtime: Runtime
    source: ModelRef
    target: ModelRef
    read: list[ScoredRef]
    own: list[ScoredRef]
    counts: list[CountsRef]

    @property
    def store(self) -> Store:
        return open_store(self.runtime)

    def tokens(self, ref: ScoredRef) -> Tokens:
        return read_scored(self.store.fetch(ref)).tokens


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama: ModelFactory, tiny_neox: ModelFactory) -> Made:
    folder = tmp_path_factory.mktemp("count")
    for i, text in enumerate(TEXTS[:8]):
        (folder / f"{i}.txt").write_text(text + f" Number {i}.")
    runtime = Runtime(root=str(folder / "store"), device="cpu")
    source, target = (download.fn(LocalModel(path=str(make())), runtime=runtime) for make in (tiny_neox, tiny_llama))
    spec = CorpusSpec(documents=(Files(paths=(f"{folder}/*.txt",)),), max_bytes=80, shard_bytes=300, sharding="by_size")
    shards = shards_of(build_corpus.fn(spec, [], runtime=runtime), runtime)
    extraction = ExtractionSpec(mode=TopK(k=6))
    read, own = ([extract.fn(model, s, extraction, runtime=runtime) for s in shards] for model in (source, target))
    counts = [count_pairs.fn(a, b, runtime=runtime) for a, b in zip(read, own, strict=True)]
    return Made(runtime, source, target, read, own, counts)


def test_each_shards_counts_are_its_pairs_and_their_facts_say_how_many(made: Made) -> None:
    assert len(made.counts) > 1
    for ref, read, own in zip(made.counts, made.read, made.own, strict=True):
        expected, found = tally_pairs(made.tokens(read), made.tokens(own)), read_counts(made.store.fetch(ref))
        assert all(torch.equal(getattr(found, name), column) for name, column in vars(expected).items())
        manifest = made.store.manifest(ref)
        assert manifest is not None
        counted = int(expected.counts.sum())
        assert manifest.facts == {
            "pairs": len(expected.counts),
            "counted": counted,
            "counted_share": round(counted / len(made.tokens(own).ids), 6),
        }
        assert manifest.facts["counted_share"] > 0.5


def test_a_deleted_count_comes_back_with_the_same_bytes(made: Made) -> None:
    before = (made.store.fetch(made.counts[0]) / "counts.safetensors").read_bytes()
    made.store.delete(made.counts[0].address)
    assert count_pairs.fn(made.read[0], made.own[0], runtime=made.runtime) == made.counts[0]
    assert (made.store.fetch(made.counts[0]) / "counts.safetensors").read_bytes() == before


@pytest.mark.parametrize("mapping", [Statistics(), Statistics(min_count=3), CoOccurrence()], ids=str)
def test_the_map_follows_all_shards_and_aligns_them(made: Made, mapping: VocabMapping) -> None:
    ref = map_vocab.fn(made.source, made.target, mapping, made.counts, runtime=made.runtime)
    pair = read_pair(made.store.fetch(ref))
    assert pair.encode is not None
    seen = sum_counts([read_counts(made.store.fetch(count)) for count in made.counts])
    assert torch.equal(pair.vocab_map.ids, mapping(pair.source, pair.target, pair.encode, seen).ids)
    fewer = map_vocab.fn(made.source, made.target, mapping, made.counts[:1], runtime=made.runtime)
    assert fewer != ref
    aligned = align.fn(made.read[0], made.own[0], ref, ByteBoundary(), runtime=made.runtime)
    assert bool(read_aligned(made.store.fetch(aligned)).dist.present.any())


@pytest.mark.parametrize(("mapping", "counted", "found"), [(Statistics(), 0, 0), (BytePiece(), 2, 2)], ids=str)
def test_counts_go_to_the_mappings_that_need_them(made: Made, mapping: VocabMapping, counted: int, found: int) -> None:
    with pytest.raises(ValueError, match=rf"vocab_mapping {mapping.kind} takes .*, found {found}"):
        map_vocab.fn(made.source, made.target, mapping, made.counts[:counted], runtime=made.runtime)


@pytest.mark.parametrize("mapping", [BytePiece(), Canonical()], ids=str)
def test_no_counts_leave_no_mark_on_a_maps_identity(made: Made, mapping: VocabMapping) -> None:
    marks = {
        map_vocab.fingerprint(made.source, made.target, mapping, *counts, runtime=made.runtime)
        for counts in ((), ([],), ((),))
    }
    assert len(marks) == 1
