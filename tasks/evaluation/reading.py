"""A model reads held-out text: what it pays for every piece, whatever its tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from fusion_core.distributions import TopK
from fusion_core.types import NO_BOUNDARY, Scored, Tokens
from tasks.artifacts import Runtime
from tasks.corpora.documents import Document
from tasks.engines import Dtype, ModelScorer, Problem, check_window, pick_device, score_tokens, tokens_per_batch
from tasks.models.folders import (
    context_window,
    encode_documents,
    load_config,
    load_model,
    load_tokenizer,
    vocabulary_of,
)


@dataclass(frozen=True)
class Reading:
    """Pieces as a model read them. last_rows: int64 per piece, the row of its last text token (not the end token)."""

    scored: Scored
    last_rows: Tensor

    def nats(self) -> list[float]:
        """What each piece's text costs; the end token isn't counted."""
        starts = self.scored.tokens.doc_offsets[:-1].tolist()
        pairs = zip(starts, self.last_rows.tolist(), strict=True)
        return [float(self.scored.nll[start:last].double().sum()) for start, last in pairs]


@dataclass(frozen=True)
class Reader:
    """A loaded model, ready to read."""

    encode: Callable[[list[str], list[bool]], Tokens]
    score: Callable[[Tokens], tuple[Scored, dict[int, Problem]]]
    window: int | None

    @classmethod
    def load(cls, folder: Path, dtype: Dtype, runtime: Runtime) -> Self:
        """The model of a Hugging Face folder, on the runtime's device."""
        tokenizer, device = load_tokenizer(folder), pick_device(runtime.device)
        vocabulary, network = vocabulary_of(tokenizer), load_model(folder, dtype, device)
        batch_tokens = tokens_per_batch(runtime.batch_tokens, device)
        scorer = ModelScorer(network, TopK(k=1), vocabulary.size, batch_tokens=batch_tokens)
        return cls(
            encode=lambda texts, final: encode_documents(tokenizer, vocabulary, texts, final),
            score=lambda tokens: score_tokens(scorer, tokens, vocabulary.size),
            window=context_window(load_config(folder)),
        )

    def read(self, pieces: Sequence[Document]) -> Reading:
        """The pieces with their costs. Raises `ValueError` for one over the window, or where logits aren't finite."""
        texts, final = [p.text for p in pieces], [p.final for p in pieces]
        tokens = self.encode(texts, final)
        check_window(self.window, tokens, [len(text.encode()) for text in texts])
        scored, quarantined = self.score(tokens)
        if quarantined:
            raise ValueError(
                f"evaluation: expected finite logits, found NaN or infinity in document {pieces[min(quarantined)].id}"
            )
        ends = tokens.doc_offsets[1:]
        has_end = torch.tensor(final, dtype=torch.bool) & (tokens.boundaries[ends - 1] == NO_BOUNDARY)
        return Reading(scored, ends - 1 - has_end.long())


def tally_costs(pieces: Sequence[Document], nats: Sequence[float], costs: dict[str, dict[str, object]]) -> None:
    """Adds pieces to the costs of their documents: domain, bytes, nats, by the document's id."""
    for piece, spent in zip(pieces, nats, strict=True):
        entry = costs.setdefault(piece.id, {"domain": piece.domain, "bytes": 0, "nats": 0.0})
        entry["bytes"] += len(piece.text.encode())  # type: ignore[operator]
        entry["nats"] += spent  # type: ignore[operator]
