"""The transformers engine against the plain forward pass, one document at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_core.distributions import ReferenceTopK, TopK
from fusion_core.types import Scored, Tokens
from tasks.artifacts import Runtime
from tasks.engines import ModelScorer, Problem, TransformersEngine, check_window, pick_device, score_tokens, split_head
from tasks.engines.devices import memory_for_weights
from tasks.engines.forward import NOT_FINITE
from tasks.models.folders import encode_documents, load_model, load_tokenizer, vocabulary_of
from tests.conftest import TEXTS, ModelFactory

DOCUMENTS = [TEXTS[0], TEXTS[1] * 3, "ab", TEXTS[2]]


def _read(folder: Path) -> tuple[Tokens, int]:
    tokenizer = load_tokenizer(folder)
    vocabulary = vocabulary_of(tokenizer)
    return encode_documents(tokenizer, vocabulary, DOCUMENTS, [True] * len(DOCUMENTS)), vocabulary.size


def _score(
    model: Any, tokens: Tokens, mode: TopK, vocab_size: int, batch_tokens: int
) -> tuple[Scored, dict[int, Problem]]:
    return score_tokens(ModelScorer(model, mode, vocab_size, batch_tokens=batch_tokens), tokens, vocab_size)


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_neox"])
def test_rows_equal_the_float64_softmax_of_each_document_alone(family: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)(seed=3)
    tokens, vocab_size = _read(folder)
    model = load_model(folder, "float32")
    scored, quarantined = _score(model, tokens, TopK(k=5), vocab_size, 64)
    assert quarantined == {}
    for start, stop in zip(tokens.doc_offsets[:-1].tolist(), tokens.doc_offsets[1:].tolist(), strict=True):
        ids = tokens.ids[start:stop]
        with torch.no_grad():
            truth = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        rows = scored.dist.rows(start, stop)
        for i in range(stop - start):
            kept = slice(int(rows.row_offsets[i]), int(rows.row_offsets[i + 1]))
            best = truth[i, :vocab_size].topk(5).values.sort().values
            torch.testing.assert_close(rows.logprobs[kept].double().sort().values, best, atol=2e-5, rtol=0)
            torch.testing.assert_close(rows.logprobs[kept].double(), truth[i, rows.ids[kept]], atol=2e-5, rtol=0)
        expected = -truth[:-1].gather(1, ids[1:, None]).squeeze(1)
        torch.testing.assert_close(scored.nll[start : stop - 1].double(), expected, atol=2e-5, rtol=0)
        assert torch.isnan(scored.nll[stop - 1])


def test_batch_composition_does_not_change_a_row(tiny_llama: ModelFactory) -> None:
    folder = tiny_llama(seed=1)
    tokens, vocab_size = _read(folder)
    model = load_model(folder, "float32")
    one, _ = _score(model, tokens, TopK(k=4), vocab_size, 1)
    all_together, _ = _score(model, tokens, TopK(k=4), vocab_size, 10_000)
    torch.testing.assert_close(one.dist.logprobs, all_together.dist.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.nll, all_together.nll, atol=1e-5, rtol=0, equal_nan=True)


def test_a_batch_that_runs_out_of_memory_halves_the_budget_for_good(
    tiny_llama: ModelFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, vocab_size = _read(folder := tiny_llama(seed=1))
    model, longest = load_model(folder, "float32"), int(tokens.doc_offsets.diff().max())
    scorer = ModelScorer(model, TopK(k=4), vocab_size, batch_tokens=10_000)
    expected, _ = score_tokens(scorer, tokens, vocab_size)
    score, tried = scorer._score, list[int]()

    def score_small(sequences: list[torch.Tensor], keys: torch.Tensor) -> Any:
        tried.append(len(sequences) * max(map(len, sequences)))
        if tried[-1] > longest:
            raise torch.OutOfMemoryError
        return score(sequences, keys)

    monkeypatch.setattr(scorer, "_score", score_small)
    scored, quarantined = score_tokens(scorer, tokens, vocab_size)
    assert quarantined == {}
    torch.testing.assert_close(scored.dist.logprobs, expected.dist.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(scored.nll, expected.nll, atol=1e-5, rtol=0, equal_nan=True)
    assert scorer.batch_tokens < 2 * longest
    assert scorer.facts["batch_tokens"] == scorer.batch_tokens
    failed = sum(size > longest for size in tried)
    tried.clear()
    score_tokens(scorer, tokens, vocab_size)
    assert sum(size > longest for size in tried) <= failed - 1  # it remembers

    def never(sequences: list[torch.Tensor], keys: torch.Tensor) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(scorer, "_score", never)
    with pytest.raises(torch.OutOfMemoryError):
        score_tokens(scorer, tokens, vocab_size)


@pytest.mark.parametrize("changes", [{"attention": "eager"}, {"attention": "sdpa"}, {"spread": True}], ids=str)
def test_how_a_model_runs_changes_no_row(changes: dict[str, Any], tiny_llama: ModelFactory) -> None:
    tokens, vocab_size = _read(folder := tiny_llama(seed=1))
    runtime = Runtime(device="cpu")
    plain = TransformersEngine()(folder, TopK(k=4), vocab_size, runtime)
    other = TransformersEngine()(folder, TopK(k=4), vocab_size, runtime.model_copy(update=changes))
    expected, found = (score_tokens(scorer, tokens, vocab_size)[0] for scorer in (plain, other))
    torch.testing.assert_close(found.dist.logprobs, expected.dist.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.nll, expected.nll, atol=1e-5, rtol=0, equal_nan=True)


def test_a_spread_model_takes_the_named_devices_and_no_other(
    tiny_llama: ModelFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import infer_auto_device_map

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda name: (200_000, 400_000))
    room = memory_for_weights(["cuda:1", "cuda:3"])
    assert room.keys() == {1, 3, "cpu"}
    assert room[1] == room[3] == 180_000
    assert memory_for_weights(["cpu"]).keys() == {"cpu"}
    places = infer_auto_device_map(load_model(tiny_llama(), "float32"), room, ["LlamaDecoderLayer"])
    assert {1, 3} <= set(places.values()) <= {1, 3, "cpu"}


def test_documents_without_tokens_have_no_rows(tiny_llama: ModelFactory) -> None:
    tokens, vocab_size = _read(folder := tiny_llama(seed=1))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), tokens.doc_offsets, tokens.doc_offsets[-1:]])
    gaps = Tokens(tokens.ids, tokens.boundaries, offsets)
    model = load_model(folder, "float32")
    assert torch.equal(
        _score(model, gaps, TopK(k=4), vocab_size, 64)[0].dist.logprobs,
        _score(model, tokens, TopK(k=4), vocab_size, 64)[0].dist.logprobs,
    )
    nothing = Tokens(tokens.ids[:0], tokens.boundaries[:0], torch.zeros(1, dtype=torch.int64))
    assert _score(model, nothing, TopK(k=4), vocab_size, 64)[0].dist.num_rows == 0


def test_padded_embedding_rows_never_become_candidates(tiny_neox: ModelFactory) -> None:
    folder = tiny_neox(vocab_size=512, seed=2)
    tokens, vocab_size = _read(folder)
    model = load_model(folder, "float32")
    with torch.no_grad():
        model.get_output_embeddings().weight[vocab_size:] *= 100  # padded rows that would win every softmax
    scored, _ = _score(model, tokens, TopK(k=8), vocab_size, 256)
    assert vocab_size < 512
    assert int(scored.dist.ids.max()) < vocab_size
    assert scored.dist.vocab_size == vocab_size


def test_a_document_with_nan_logits_is_quarantined_and_the_others_are_not(tiny_llama: ModelFactory) -> None:
    folder = tiny_llama(seed=4)
    tokens, vocab_size = _read(folder)
    model = load_model(folder, "float32")
    bounds = tokens.doc_offsets.tolist()
    poison = next(iter(set(tokens.ids[bounds[3] :].tolist()) - set(tokens.ids[: bounds[3]].tolist())))
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = torch.nan
    scored, quarantined = _score(model, tokens, TopK(k=4), vocab_size, 10_000)
    assert quarantined == {3: NOT_FINITE}
    assert not scored.dist.present[bounds[3] :].any()
    assert scored.dist.present[: bounds[3]].all()
    assert torch.isnan(scored.nll[bounds[3] :]).all()


def test_logits_beyond_the_modes_precision_quarantine_the_document(tiny_llama: ModelFactory) -> None:
    folder = tiny_llama(seed=4)
    tokens, vocab_size = _read(folder)
    model = load_model(folder, "float32")
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = 1e7  # past the largest fp16 wherever the states' sum isn't tiny
    _, quarantined = _score(model, tokens, ReferenceTopK(k=4), vocab_size, 10_000)
    assert set(quarantined.values()) == {NOT_FINITE}
    assert _score(model, tokens, TopK(k=4), vocab_size, 10_000)[1] == {}


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_neox"])
def test_a_split_model_gives_the_same_logits(family: str, request: pytest.FixtureRequest) -> None:
    model = load_model(request.getfixturevalue(family)(seed=5), "float32")
    head = split_head(model)
    assert head is not None
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        logits = head.body(input_ids=ids).last_hidden_state @ head.weight.T
        if head.bias is not None:
            logits = logits + head.bias
        torch.testing.assert_close(logits, model(input_ids=ids).logits)


def test_a_piece_over_the_window_is_refused_with_the_size_that_fits() -> None:
    tokens = Tokens(torch.arange(300), torch.arange(300), torch.tensor([0, 100, 300]))
    check_window(200, tokens, [400, 900])
    check_window(None, tokens, [400, 900])
    with pytest.raises(ValueError, match=r"at most 150 tokens, .* found one of 200 \(900 bytes\); .* to 607 or less"):
        check_window(150, tokens, [400, 900])


def test_a_device_that_is_not_here_is_refused() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="found 'warp'; try cpu or auto"):
        pick_device("warp")
