"""The engine of served models: an OpenAI-compatible server that returns log-probabilities of the prompt.

The model's folder gives the tokenizer; texts are sent as token ids, so that the server can't cut them otherwise. The
two ways in which servers answer are documented by vLLM: `prompt_logprobs`, and `echo` with token ids for names.
"""

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fusion_core.distributions import ExtractionMode, TopK
from fusion_core.spec import PINNED, Spec
from fusion_core.types import Tokens
from tasks.artifacts import Runtime
from tasks.engines.devices import Dtype
from tasks.engines.scoring import DocumentRows, Problem
from tasks.engines.served import Candidates, check_mode, rows_of
from tasks.secrets import Address

_REQUESTS = 16  # under way at a time; the server makes batches of them
_SECONDS = 600.0
_REFUSED = 400, 413, 422  # the prompt's fault, and not the address's or the key's
_ID = "token_id:"


class EndpointEngine(Spec):
    """A model that an OpenAI-compatible server runs. Its address is no part of what is computed."""

    kind: Literal["endpoint"] = "endpoint"
    url: Annotated[Address, PINNED] = Field(title="Address", description="Up to and with /v1.", pattern=r"^https?://")
    served_model: str = Field(title="Name there", description="What the server calls the model.", min_length=1)
    protocol: Literal["prompt_logprobs", "echo"] = Field(
        "prompt_logprobs", title="Protocol", description="How the server gives the prompt's log-probabilities."
    )
    key_variable: Annotated[str, PINNED] = Field(
        "", title="Key", description="Environment variable with the server's API key; none if empty."
    )

    @property
    def dtype(self) -> Dtype:
        """Of a model of this name that this machine loads itself, to inspect a recipe."""
        return "bfloat16"

    def devices_needed(self, runtime: Runtime) -> int | None:
        """None of this machine's: 0."""
        return 0

    def __call__(self, folder: Path, mode: ExtractionMode, vocab_size: int, runtime: Runtime) -> "EndpointScorer":
        """The served model. Raises `ValueError` for a mode that needs more than the likeliest tokens."""
        return EndpointScorer(self, check_mode(mode, self.kind), vocab_size)


class EndpointScorer:
    """A served model as a `Scorer`; documents come back in order."""

    def __init__(self, engine: EndpointEngine, mode: TopK, vocab_size: int) -> None:
        """Raises `ValueError` when the variable of the key isn't set; nothing is contacted yet."""
        self._engine, self._mode, self._vocab_size = engine, mode, vocab_size
        key = os.environ.get(engine.key_variable) if engine.key_variable else ""
        if key is None:
            raise ValueError(
                f"engine.key_variable: expected the environment variable {engine.key_variable}, found none; set it"
            )
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    @property
    def facts(self) -> dict[str, object]:
        """The protocol that the server speaks."""
        return {"protocol": self._engine.protocol}

    def __call__(self, tokens: Tokens, row_keys: Tensor) -> Iterator[DocumentRows]:
        """Every document's rows. A document that the server refuses is quarantined with the server's words.

        Raises httpx's errors when the server can't be reached or fails, and `ValueError` for an answer that isn't of
        the protocol.
        """
        import httpx

        starts = tokens.doc_offsets.tolist()
        spans = [(d, tokens.ids[a:b].tolist()) for d, (a, b) in enumerate(itertools.pairwise(starts)) if b > a]
        with (
            httpx.Client(headers=self._headers, timeout=_SECONDS) as client,
            ThreadPoolExecutor(_REQUESTS, "endpoint") as pool,
        ):
            try:
                yield from pool.map(lambda span: self._score(client, *span), spans)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _score(self, client: Any, document: int, ids: list[int]) -> DocumentRows:  # Any: httpx's client
        response = client.post(f"{self._engine.url.rstrip('/')}/completions", json=self._request(ids))
        if response.status_code in _REFUSED:
            words = " ".join(response.text.split())[:200]
            problem = Problem(f"the server refuses it ({response.status_code}: {words})", "check the server's limits")
            return DocumentRows(document, None, torch.full((len(ids),), torch.nan, dtype=torch.float32), problem)
        response.raise_for_status()
        candidates = read_candidates(response.json(), len(ids), self._engine.protocol)
        return rows_of(document, ids, candidates, self._mode.k, self._vocab_size)

    def _request(self, ids: list[int]) -> dict[str, object]:
        """One token is asked for besides: its candidates are the last row."""
        request = {"model": self._engine.served_model, "prompt": ids, "max_tokens": 1, "temperature": 0}
        request |= {"logprobs": self._mode.k, "return_tokens_as_token_ids": True}
        asked = {"echo": True} if self._engine.protocol == "echo" else {"prompt_logprobs": self._mode.k}
        return request | asked


def read_candidates(answer: Any, num_tokens: int, protocol: str) -> list[Candidates]:  # Any: parsed JSON
    """What a server's answer says to follow each of a prompt's tokens.

    Raises `ValueError` for an answer without log-probabilities, or with names of tokens that aren't ids.
    """
    try:
        choice = answer["choices"][0]
        generated = choice["logprobs"]
        if protocol == "echo":
            rows = [dict(row) for row in generated["top_logprobs"][1 : num_tokens + 1]]
            for row, name, logprob in zip(rows, generated["tokens"][1:], generated["token_logprobs"][1:], strict=False):
                row[name] = logprob
            return [_by_id(row) for row in rows]
        prompt = [
            {int(i): float(entry["logprob"]) for i, entry in row.items()} for row in choice["prompt_logprobs"][1:]
        ]
        return [*prompt, _by_id(generated["top_logprobs"][0])]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"engine.protocol: expected log-probabilities of the prompt as {protocol} gives them, found an answer "
            f"without them ({type(error).__name__}: {error}); try the other protocol, or a server that returns them"
        ) from error


def _by_id(row: dict[str, float]) -> Candidates:
    named = next((name for name in row if not name.startswith(_ID)), None)
    if named is not None:
        raise ValueError(
            f"engine.protocol: expected tokens named by id ({_ID}42), found {named!r}, which may be several tokens' "
            "text; use a server that knows return_tokens_as_token_ids"
        )
    return {int(name.removeprefix(_ID)): float(logprob) for name, logprob in row.items()}
