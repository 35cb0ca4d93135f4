"""Served models against the same model in this process, through a server that speaks the documented protocol."""

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch

from fusion_core.distributions import Sampled, TopK
from fusion_core.types import Tokens
from tasks.artifacts import Runtime, canonical_json
from tasks.engines import EndpointEngine, TransformersEngine, VllmEngine, score_tokens
from tasks.engines.forward import NOT_FINITE
from tasks.engines.served import rows_of
from tasks.engines.vllm_engine import count_devices, read_output
from tasks.models.folders import encode_documents, load_model, load_tokenizer, vocabulary_of
from tasks.running.transient import is_transient
from tests.conftest import TEXTS, ModelFactory

K = 4


@dataclass
class Server:
    """A model behind `/v1/completions`; what was asked, and how to misbehave.

    longest: longer prompts are refused. status: of every answer. most: the server's own limit of candidates.
    """

    model: Any
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    longest: int = 10_000
    status: int = 200
    most: int = 20
    names_ids: bool = True

    def answer(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        ids = request["prompt"]
        if self.status != 200 or len(ids) > self.longest:
            return (self.status if self.status != 200 else 400), {"error": {"message": "maximum context length"}}
        with torch.no_grad():
            logprobs = self.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        k = min(request.get("prompt_logprobs", request["logprobs"]), self.most)
        prefix = "token_id:" if self.names_ids and request["return_tokens_as_token_ids"] else "x"
        best = [dict(zip(*reversed(row.topk(k)), strict=True)) for row in logprobs]
        rows = [{int(token): float(logprob) for token, logprob in row.items()} for row in best]
        named = [{f"{prefix}{token}": logprob for token, logprob in row.items()} for row in rows]
        generated = [*ids[1:], max(rows[-1], key=rows[-1].__getitem__)]
        costs = [float(row[token]) for row, token in zip(logprobs, generated, strict=True)]
        choice: dict[str, Any] = {"index": 0, "text": "", "logprobs": {"top_logprobs": named[-1:]}}
        if request.get("echo"):
            choice["logprobs"] = {
                "tokens": [f"{prefix}{token}" for token in [ids[0], *generated]],
                "token_logprobs": [None, *costs],
                "top_logprobs": [None, *named],
            }
        else:
            prompt = [
                row | {label: cost} for row, label, cost in zip(rows[:-1], generated[:-1], costs[:-1], strict=True)
            ]
            entries = [
                {str(t): {"logprob": lp, "rank": 1, "decoded_token": "?"} for t, lp in row.items()} for row in prompt
            ]
            choice["prompt_logprobs"] = [None, *entries]
        return 200, {"object": "text_completion", "choices": [choice]}


@pytest.fixture
def server(tiny_llama: ModelFactory) -> Iterator[Server]:
    """A running server of a tiny model."""
    folder = tiny_llama(seed=6)
    served = Server(load_model(folder, "float32"))
    served.model.name_or_path = str(folder)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.requests.append({**request, "path": self.path})
            served.keys.append(self.headers.get("Authorization"))
            status, answer = served.answer(request)
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    served.url = f"http://127.0.0.1:{listening.server_port}/v1"
    yield served
    listening.shutdown()
    thread.join()
    listening.server_close()


def _read(served: Server) -> tuple[Path, Tokens, int]:
    folder = Path(served.model.name_or_path)
    tokenizer = load_tokenizer(folder)
    vocabulary = vocabulary_of(tokenizer)
    tokens = encode_documents(tokenizer, vocabulary, [TEXTS[0], "ab", TEXTS[1]], [True] * 3)
    return folder, tokens, vocabulary.size


def _engine(served: Server, **changes: Any) -> EndpointEngine:
    return EndpointEngine(**{"url": served.url, "served_model": "tiny", **changes})


@pytest.mark.parametrize("protocol", ["prompt_logprobs", "echo"])
def test_a_served_model_gives_the_rows_of_the_model_itself(server: Server, protocol: str) -> None:
    folder, tokens, vocab_size = _read(server)
    runtime = Runtime(device="cpu")
    scorer = _engine(server, protocol=protocol)(folder, TopK(k=K), vocab_size, runtime)
    found, problems = score_tokens(scorer, tokens, vocab_size)
    expected, _ = score_tokens(TransformersEngine()(folder, TopK(k=K), vocab_size, runtime), tokens, vocab_size)
    assert problems == {}
    assert torch.equal(found.dist.row_offsets, expected.dist.row_offsets)
    assert torch.equal(found.dist.ids, expected.dist.ids)
    torch.testing.assert_close(found.dist.logprobs, expected.dist.logprobs, atol=2e-5, rtol=0)
    torch.testing.assert_close(found.dist.tail_logprob, expected.dist.tail_logprob, atol=2e-5, rtol=0)
    torch.testing.assert_close(found.nll, expected.nll, atol=2e-5, rtol=0, equal_nan=True)
    assert {request["path"] for request in server.requests} == {"/v1/completions"}
    assert len(server.requests) == tokens.num_docs


def test_a_document_that_the_server_refuses_is_quarantined_with_its_words(server: Server) -> None:
    folder, tokens, vocab_size = _read(server)
    server.longest = int(tokens.doc_offsets.diff()[0]) - 1
    scored, problems = score_tokens(_engine(server)(folder, TopK(k=K), vocab_size, Runtime()), tokens, vocab_size)
    assert 0 in problems
    assert 1 not in problems
    assert "400" in problems[0].text
    assert "maximum context length" in problems[0].text
    assert not scored.dist.present[: int(tokens.doc_offsets[1])].any()


@pytest.mark.parametrize(("status", "is_retried"), [(503, True), (401, False), (404, False)])
def test_a_server_that_fails_is_an_error_and_retried_if_it_may_recover(
    server: Server, status: int, is_retried: bool
) -> None:
    folder, tokens, vocab_size = _read(server)
    server.status = status
    with pytest.raises(httpx.HTTPStatusError) as caught:
        score_tokens(_engine(server)(folder, TopK(k=K), vocab_size, Runtime()), tokens, vocab_size)
    assert is_transient(caught.value) is is_retried


def test_answers_that_lack_something_say_what_to_change(server: Server) -> None:
    folder, tokens, vocab_size = _read(server)

    def score(**changes: Any) -> None:
        score_tokens(_engine(server, **changes)(folder, TopK(k=K), vocab_size, Runtime()), tokens, vocab_size)

    server.most = K - 2
    with pytest.raises(ValueError, match=r"mode\.k: expected 4 candidates per token, found 2"):
        score()
    server.most, server.names_ids = 20, False
    with pytest.raises(ValueError, match=r"tokens named by id \(token_id:42\), found 'x"):
        score(protocol="echo")


def test_the_key_comes_from_the_environment_and_the_address_is_no_identity(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tokens, vocab_size = _read(server)
    engine = _engine(server, key_variable="FUSE_TEST_KEY")
    with pytest.raises(ValueError, match="environment variable FUSE_TEST_KEY, found none"):
        engine(folder, TopK(k=K), vocab_size, Runtime())
    monkeypatch.setenv("FUSE_TEST_KEY", "secret")
    score_tokens(engine(folder, TopK(k=K), vocab_size, Runtime()), tokens, vocab_size)
    assert set(server.keys) == {"Bearer secret"}
    assert canonical_json(engine) == canonical_json(_engine(server, url="http://elsewhere/v1"))
    assert canonical_json(engine) != canonical_json(_engine(server, served_model="other"))


def test_an_address_with_a_password_is_refused_here_and_by_prefects_server() -> None:
    url = "https://me:pass@host/v1"
    with pytest.raises(ValueError, match=r"expected an address without credentials, found https://\*\*\*@host/v1"):
        EndpointEngine(url=url, served_model="a")
    schema = EndpointEngine.model_json_schema()["properties"]["url"]
    assert re.search(schema["not"]["pattern"], url)
    assert re.search(schema["pattern"], "https://host/v1")


@pytest.mark.parametrize("engine", [EndpointEngine(url="http://127.0.0.1/v1", served_model="a"), VllmEngine()])
def test_modes_that_need_more_than_the_likeliest_are_refused(engine: EndpointEngine | VllmEngine) -> None:
    for mode, found in [(Sampled(), "sampled"), (TopK(temperature=2.0), "temperature 2.0")]:
        with pytest.raises(ValueError, match=f"expected mode top_k at temperature 1, found {found}"):
            engine(Path(), mode, 10, Runtime())


def test_vllm_uses_the_devices_that_its_step_has_and_refuses_others() -> None:
    shown = ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert count_devices(shown, shown, spread=False) == 1
    assert count_devices(["cuda:1", "cuda:0"], shown, spread=True) == 2
    assert count_devices(["cpu"], ["cpu"], spread=True) == 1
    for named, spread in [(["cuda:1"], False), (["cuda:0", "cuda:2"], True), (["cpu"], False)]:
        with pytest.raises(ValueError, match=rf"expected cuda:0.*, found {', '.join(named)}; name the first ones"):
            count_devices(named, shown, spread)
    assert VllmEngine().devices_needed(Runtime()) is None  # one of two would not always be the first


def test_rows_keep_the_likeliest_real_ids_and_the_tail_is_the_rest() -> None:
    probs = {7: 0.4, 2: 0.2, 9: 0.2, 5: 0.1}
    row = {token: float(torch.tensor(p, dtype=torch.float64).log()) for token, p in probs.items()}
    rows = rows_of(3, [1, 5], [row, row], k=2, vocab_size=7)
    assert rows.dist is not None
    assert rows.dist.ids.tolist() == [2, 5, 2, 5]  # 7 and 9 are padding
    assert rows.dist.tail_logprob.exp().tolist() == pytest.approx([0.7, 0.7])
    assert float(rows.nll[0].neg().exp()) == pytest.approx(0.1)
    assert rows.nll[1].isnan()
    bad = rows_of(3, [1, 5], [row | {5: float("-inf")}, row], k=2, vocab_size=7)
    assert (bad.dist, bad.problem) == (None, NOT_FINITE)
    with pytest.raises(ValueError, match=r"none of token 1 \(id 6\)"):
        rows_of(3, [1, 6], [row, row], k=2, vocab_size=7)
    with pytest.raises(ValueError, match="each of 3 tokens, found 2"):
        rows_of(3, [1, 5, 5], [row, row], k=2, vocab_size=7)


def test_vllms_documented_outputs_are_read() -> None:
    """As vLLM documents `RequestOutput`: nothing for the first token, a dictionary of `Logprob` for every other."""

    def entry(logprob: float, rank: int) -> SimpleNamespace:
        return SimpleNamespace(logprob=logprob, rank=rank, decoded_token="?")

    output = SimpleNamespace(
        prompt_logprobs=[None, {11: entry(-0.5, 1), 4: entry(-1.5, 2), 30: entry(-6.0, 90)}],
        outputs=[SimpleNamespace(token_ids=[4], logprobs=[{4: entry(-0.25, 1), 11: entry(-2.0, 2)}])],
    )
    assert read_output(output) == [{11: -0.5, 4: -1.5, 30: -6.0}, {4: -0.25, 11: -2.0}]
    rows = rows_of(0, [1, 30], read_output(output), k=2, vocab_size=32)
    assert rows.dist is not None
    assert rows.dist.ids.tolist() == [11, 4, 4, 11]
    assert float(rows.nll[0]) == 6.0
