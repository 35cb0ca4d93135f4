"""A model reads held-out text: what it pays for every piece, whatever its tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fusion_core.distributions import TopK
from fusion_core.types import NO_BOUNDARY, Scored, Tokens
from tasks.artifacts import ModelRef, Runtime
from tasks.corpora.documents import Document
from tasks.engines import Dtype, ModelScorer, Problem, check_window, pick_device, score_tokens, tokens_per_batch
from tasks.engines.encoding import Encoded, Encoder
from tasks.engines.quarantine import encode_readable
from tasks.models.folders import load_model
from tasks.storage.store import Store


@dataclass(frozen=True)
class Reading:
    """Pieces as a model read them.

    scored: rows whose label isn't text, those of a conversation's other speakers, have no nll.
    last_rows: int64 per piece, the row of its last text token (not the end token).
    """

    scored: Scored
    last_rows: Tensor

    def rows(self) -> list[Tensor]:
        """The rows of each piece whose labels are its text; the end token isn't."""
        starts = self.scored.tokens.doc_offsets[:-1].tolist()
        known = ~self.scored.nll.isnan()
        pairs = zip(starts, self.last_rows.tolist(), strict=True)
        return [start + known[start:last].nonzero().squeeze(1) for start, last in pairs]


@dataclass(frozen=True)
class Reader:
    """A loaded model, ready to read."""

    encoder: Encoder
    score: Callable[[Tokens], tuple[Scored, dict[int, Problem]]]

    @classmethod
    def load(cls, store: Store, model: ModelRef, dtype: Dtype, runtime: Runtime) -> Self:
        """The reader of a model in the store, on the runtime's device."""
        encoder, device = Encoder.load(store, model), pick_device(runtime.device)
        network, vocab_size = load_model(encoder.folder, dtype, device), encoder.vocabulary.size
        batch_tokens = tokens_per_batch(runtime.batch_tokens, device)
        scorer = ModelScorer(network, TopK(k=1), vocab_size, batch_tokens=batch_tokens)
        return cls(encoder, lambda tokens: score_tokens(scorer, tokens, vocab_size))

    def read(self, pieces: Sequence[Document]) -> Reading:
        """The pieces with their costs.

        Raises `ValueError` for one over the window or that can't be encoded (none is left out: what models paid is
        compared over the same documents), or where logits aren't finite.
        """
        self.encoder.check(pieces)
        encoded, problems = encode_readable(self.encoder, pieces, None)
        for number, problem in problems.items():
            raise ValueError(
                f"evaluation: expected documents that model {self.encoder.name} can read, found {len(problems)} of "
                f"{len(pieces)} that it can't (document {pieces[number].id}: {problem.text}); {problem.way_out}"
            )
        check_window(self.encoder.window, encoded.tokens, [piece.num_bytes for piece in pieces])
        scored, quarantined = self.score(encoded.tokens)
        if quarantined:
            raise ValueError(
                f"evaluation: expected finite logits, found NaN or infinity in document {pieces[min(quarantined)].id}"
            )
        return Reading(encoded.hide_other_rows(scored), _last_rows(encoded, pieces))


def _last_rows(encoded: Encoded, pieces: Sequence[Document]) -> Tensor:
    tokens = encoded.tokens
    text = torch.arange(len(tokens.ids)).where(encoded.is_text, -1)
    last = tokens.doc_offsets[:-1].scatter_reduce(0, tokens.doc_of_token, text, "amax")
    may_end = torch.tensor([piece.final and not piece.messages for piece in pieces], dtype=torch.bool)
    return last - (may_end & (tokens.boundaries[last] == NO_BOUNDARY)).long()


def tally_costs(pieces: Sequence[Document], nats: Sequence[float], costs: dict[str, dict[str, object]]) -> None:
    """Adds pieces to the costs of their documents: domain, bytes of text, nats, by the document's id."""
    for piece, spent in zip(pieces, nats, strict=True):
        entry = costs.setdefault(piece.id, {"domain": piece.domain, "bytes": 0, "nats": 0.0})
        entry["bytes"] += len(piece.text.encode())  # type: ignore[operator]
        entry["nats"] += spent  # type: ignore[operator]
