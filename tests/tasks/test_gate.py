"""Probes and the smoke gate: greedy texts by their definition, and a model that was broken on purpose."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_core.metrics import Interval
from tasks.artifacts import ModelRef, Runtime, ShardRef
from tasks.corpora.documents import shards_of
from tasks.corpus import CorpusSpec, Files, build_corpus
from tasks.download import download
from tasks.evaluate import EvaluationSpec, evaluate
from tasks.evaluation.gate_rules import (
    BITS,
    Finding,
    GateSpec,
    ProbedText,
    Verdict,
    find_verdicts,
    read_probe,
    read_verdict,
)
from tasks.gate import gate
from tasks.library.lineage import Library
from tasks.models.folders import LocalModel, load_model, load_tokenizer, vocabulary_of
from tasks.models.generation import continue_greedily
from tasks.probe import ProbeSpec, probe
from tasks.storage.store import open_store
from tests.conftest import TEXTS

SPEC = ProbeSpec(prompts=6, prompt_tokens=8, max_tokens=12)
Bench = tuple[Runtime, list[ShardRef], Callable[[Path], ModelRef]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("gate")
    (folder / "texts").mkdir()
    for i, text in enumerate(TEXTS[:16]):
        (folder / "texts" / f"{i:02}.txt").write_text(f"Number {i}. {text}")
    runtime = Runtime(root=str(folder / "store"), device="cpu")
    spec = CorpusSpec(documents=(Files(paths=(f"{folder}/texts/*.txt",)),), max_bytes=160)
    shards = shards_of(build_corpus.fn(spec, [], runtime=runtime), runtime)
    return runtime, shards, lambda path: download.fn(LocalModel(path=str(path)), runtime=runtime)


def judge_model(bench: Bench, model: ModelRef, target: ModelRef, spec: GateSpec = GateSpec()) -> tuple[Any, Verdict]:
    runtime, shards, _ = bench
    probes = [probe.fn(m, shards, SPEC, runtime=runtime) for m in (model, target)]
    costs = [evaluate.fn(m, shards, EvaluationSpec(), runtime=runtime) for m in (model, target)]
    ref = gate.fn(model, *probes, *costs, spec, runtime=runtime)
    return ref, read_verdict(open_store(runtime).fetch(ref))


def greedy_by_definition(network: Any, ids: list[int], end: int, vocab_size: int, max_tokens: int) -> list[int]:
    written: list[int] = []
    for _ in range(max_tokens):
        logits = network(input_ids=torch.tensor([ids + written])).logits[0, -1, :vocab_size].tolist()
        best = max(range(vocab_size), key=lambda i: (logits[i], -i))
        if best == end:
            return written
        written.append(best)
    return written


@pytest.mark.parametrize("factory", ["tiny_llama", "tiny_neox"])
def test_a_continuation_is_the_likeliest_token_again_and_again(factory: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(factory)(seed=5, initializer_range=0.3)
    tokenizer, network = load_tokenizer(folder), load_model(folder, "float32")
    vocabulary = vocabulary_of(tokenizer)
    prompts = [torch.tensor(ids) for ids in ([5, 6, 7], [40, 41], [9, 8, 7], [100, 30, 20], [44, 45])]
    found = continue_greedily(network, vocabulary, prompts, 10, batch_tokens=1000)
    assert found == continue_greedily(network, vocabulary, prompts, 10, batch_tokens=1)
    for prompt, continuation in zip(prompts, found, strict=True):
        ids = greedy_by_definition(network, prompt.tolist(), vocabulary.roles["eos"], vocabulary.size, 10)
        text = b"".join(vocabulary.surfaces[i] or b"" for i in ids).decode(errors="replace")
        assert (continuation.text, continuation.tokens, continuation.ended) == (text, len(ids), len(ids) < 10)


def test_an_empty_prompt_is_refused(tiny_llama: Callable[..., Path]) -> None:
    network, tokenizer = load_model(tiny_llama(), "float32"), load_tokenizer(tiny_llama())
    with pytest.raises(ValueError, match="found an empty one"):
        continue_greedily(network, vocabulary_of(tokenizer), [torch.tensor([])], 3, batch_tokens=9)


def test_a_probe_tells_what_was_asked_and_what_was_written(bench: Bench, tiny_llama: Callable[..., Path]) -> None:
    runtime, shards, obtain = bench
    ref = probe.fn(obtain(tiny_llama(seed=1)), shards, SPEC, runtime=runtime)
    store = open_store(runtime)
    texts = read_probe(store.fetch(ref))
    assert len(texts) == SPEC.prompts
    assert all("Number" in text.prompt for text in texts)
    manifest = store.manifest(ref)
    assert manifest is not None
    means = manifest.facts["domains"][texts[0].domain]
    assert means["repetition"] == pytest.approx(sum(t.symptoms["repetition"] for t in texts) / len(texts))


def test_a_model_that_is_its_target_passes(bench: Bench, tiny_llama: Callable[..., Path]) -> None:
    model = bench[2](tiny_llama(seed=1))
    _, verdict = judge_model(bench, model, model)
    assert verdict.passed
    assert verdict.reasons == ()
    assert {f.measure for f in verdict.findings} == {BITS, *GateSpec.model_fields} - {"bits_per_byte"}


def test_a_model_whose_tokens_were_mixed_up_fails_with_its_reasons(
    bench: Bench, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    runtime, _, obtain = bench
    folder = tiny_llama(seed=1, initializer_range=0.3)
    network = load_model(folder, "float32")
    with torch.no_grad():
        network.get_output_embeddings().weight *= 3  # sure of the wrong tokens
    network.save_pretrained(tmp_path / "mixed")
    load_tokenizer(folder).save_pretrained(tmp_path / "mixed")
    target, mixed = obtain(folder), obtain(tmp_path / "mixed")
    ref, verdict = judge_model(bench, mixed, target)
    assert not verdict.passed
    assert any(reason.startswith("bits per byte in ") for reason in verdict.reasons)
    (found,) = find_verdicts(Library.load(open_store(runtime)), mixed)
    assert found.ref == ref
    assert found.facts == {"passed": False, "reasons": list(verdict.reasons)}
    _, lenient = judge_model(
        bench, mixed, target, GateSpec(bits_per_byte=1e6, **dict.fromkeys(list(GateSpec.model_fields)[1:], 1))
    )
    assert lenient.passed


def test_the_luck_of_few_prompts_marks_nobody() -> None:
    from tasks.evaluation.costs import Costs
    from tasks.evaluation.gate_rules import judge

    def texts(*values: float) -> list[ProbedText]:
        empty = dict.fromkeys(list(GateSpec.model_fields)[1:], 0.0)
        return [
            ProbedText(document=str(i), domain="d", prompt="", text="", ended=False, symptoms=empty | {"repetition": v})
            for i, v in enumerate(values)
        ]

    costs = Costs(("0",), ("d",), torch.tensor([10]).numpy(), torch.tensor([5.0]).numpy())
    once, often = texts(1, 0, 0, 0), texts(1, 1, 1, 0.9)
    assert judge(once, texts(0, 0, 0, 0), costs, costs, GateSpec()).passed
    verdict = judge(often, texts(0, 0, 0, 0), costs, costs, GateSpec())
    assert verdict.reasons[0].startswith("repetition in d: 0.975 against 0.000 before training, +97.5 points")
    with pytest.raises(ValueError, match="found 4 and 3 texts with 3 in common"):
        judge(once, texts(0, 0, 0), costs, costs, GateSpec())


def test_short_documents_are_judged_by_what_they_cost_alone(bench: Bench, tiny_llama: Callable[..., Path]) -> None:
    runtime, shards, obtain = bench
    model = obtain(tiny_llama(seed=1))
    none = probe.fn(model, shards, ProbeSpec(prompt_tokens=999), runtime=runtime)
    assert read_probe(open_store(runtime).fetch(none)) == []
    cost = evaluate.fn(model, shards, EvaluationSpec(), runtime=runtime)
    ref = gate.fn(model, none, none, cost, cost, GateSpec(), runtime=runtime)
    assert {f.measure for f in read_verdict(open_store(runtime).fetch(ref)).findings} == {BITS}


def test_a_finding_reads_as_a_sentence() -> None:
    finding = Finding(
        domain="code",
        measure=BITS,
        model=1.1,
        target=1.0,
        difference=Interval(0.1, 0.05, 0.15),
        bound=0.02,
        failed=True,
    )
    assert finding.reason == (
        "bits per byte in code: 1.100 against 1.000 before training, +10.0 % (+5.0 to +15.0), bound +2.0"
    )
    assert json.loads(Verdict(findings=(finding,)).model_dump_json())["findings"][0]["domain"] == "code"
