"""The steps of an inspection: what they find, and that they fetch and run no more than they must."""

import json
import math
from pathlib import Path

import pytest

from tasks.artifacts import Runtime, ShardRef
from tasks.corpora.documents import shards_of
from tasks.corpus import CorpusSpec, Files, build_corpus
from tasks.download import download, download_description
from tasks.evaluate import EvaluationSpec, evaluate
from tasks.extract import ExtractionSpec, extract
from tasks.inspection import inspect_pair, inspect_scores
from tasks.models.folders import HubModel, LocalModel
from tasks.models.hub import read_dataset_licence
from tasks.preflight.findings import PairFindings, ScoreFindings, read_findings
from tasks.storage.store import open_store
from tests.conftest import TEXTS, ModelFactory
from tests.tasks.conftest import Hub


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(root=str(tmp_path / "store"), device="cpu")


@pytest.fixture
def sample(tmp_path: Path, runtime: Runtime) -> list[ShardRef]:
    """Two domains of two files each, cut into pieces."""
    documents = []
    for number, domain in enumerate(("prose", "code")):
        path = tmp_path / f"{domain}.txt"
        path.write_text(" ".join(TEXTS[number : number + 3]), encoding="utf-8")
        documents.append(Files(paths=(str(path),), domain=domain))
    spec = CorpusSpec(documents=tuple(documents), max_bytes=100, shard_bytes=300, sharding="by_size")
    return shards_of(build_corpus.fn(spec, [], runtime=runtime), runtime)


def test_a_pair_is_described_and_every_row_counted(
    sample: list[ShardRef], runtime: Runtime, tiny_llama: ModelFactory, tiny_neox: ModelFactory
) -> None:
    folders = tiny_llama(vocab_size=448), tiny_neox()
    target, source = (download_description.fn(LocalModel(path=str(f)), runtime=runtime) for f in folders)
    found = read_findings(open_store(runtime), inspect_pair.fn(source, target, sample, runtime=runtime), PairFindings)
    assert found.target.embedding_rows == 448
    assert found.target.padded_rows == 448 - found.target.tokens > 0
    assert found.target.adds_prefix_space
    assert found.source.roles == {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}
    assert set(found.domains) == {"prose", "code"}
    assert found.rows.total == sum(rows.total for rows in found.domains.values()) > 100
    assert found.sample_bytes == found.read_bytes
    assert 1 < found.target.bytes_per_token < 8


def test_a_description_fetches_no_weights(hub: Hub, runtime: Runtime, tiny_neox: ModelFactory) -> None:
    hub.push("house/neox", tiny_neox())
    ref = download_description.fn(HubModel(id="house/neox"), runtime=runtime)
    assert hub.fetched("model.safetensors") == []
    manifest = open_store(runtime).manifest(ref)
    assert manifest is not None
    assert manifest.facts == {
        "id": "house/neox",
        "licence": "apache-2.0",
        "weight_bytes": (tiny_neox() / "model.safetensors").stat().st_size,
    }
    assert "tokenizer.json" in manifest.files
    assert "model.safetensors" not in manifest.files


def test_a_folder_of_a_tokenizer_alone_can_be_described(
    tmp_path: Path, sample: list[ShardRef], runtime: Runtime, tiny_neox: ModelFactory
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare").mkdir(exist_ok=True)
        (tmp_path / "bare" / name).write_bytes((tiny_neox() / name).read_bytes())
    ref = download_description.fn(LocalModel(path=str(tmp_path / "bare")), runtime=runtime)
    found = read_findings(open_store(runtime), inspect_pair.fn(ref, ref, sample, runtime=runtime), PairFindings)
    assert found.rows.common_share == 1
    assert (found.source.parameters, found.source.padded_rows, found.source.window) == (None, None, None)


def test_without_a_tokenizer_there_is_nothing_to_describe(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected a tokenizer .* found no files"):
        download_description.fn(LocalModel(path=str(tmp_path / "empty")), runtime=runtime)


def test_scores_are_those_of_an_evaluation(
    sample: list[ShardRef], runtime: Runtime, tiny_llama: ModelFactory, tiny_neox: ModelFactory
) -> None:
    models = {
        name: download.fn(LocalModel(path=str(make())), runtime=runtime)
        for name, make in (("target", tiny_llama), ("source", tiny_neox))
    }
    scored = [[extract.fn(m, shard, ExtractionSpec(), runtime=runtime) for shard in sample] for m in models.values()]
    ref = inspect_scores.fn(list(models), scored, list(models), "target", sample, runtime=runtime)
    found = read_findings(open_store(runtime), ref, ScoreFindings)
    assert found.documents_compared > 0
    for name, model in models.items():
        costs = open_store(runtime).fetch(evaluate.fn(model, sample, EvaluationSpec(), runtime=runtime)) / "costs.json"
        for entry in json.loads(costs.read_text(encoding="utf-8")):
            bits = entry["nats"] / math.log(2) / entry["bytes"]
            assert found.models[name].bits_per_byte[entry["domain"]] == pytest.approx(bits, abs=2e-5)
        lost = found.models[name].truncation_bits
        assert lost is not None
        assert 0 < found.models[name].kept < 1
        assert abs(lost) < 0.2  # an untrained model is nearly uniform already


def test_the_licence_of_a_data_set_is_read_where_it_can_be(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("{}", encoding="utf-8")
    hub.push("house/texts", tmp_path / "data")
    assert read_dataset_licence("house/texts", "main") == "apache-2.0"
    assert read_dataset_licence("house/nothing", "main") is None
