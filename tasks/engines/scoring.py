"""What engines give, document by document, and how a shard's rows are put together from it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fusion_core.distributions import absent_rows, concatenate
from fusion_core.types import NO_BOUNDARY, Scored, TokenDist, Tokens


class Problem(NamedTuple):
    """Why a document can't be used, and what to do about it."""

    text: str
    way_out: str


@dataclass(frozen=True)
class DocumentRows:
    """One document as a model scored it; row `i` is what the model expects after the document's token `i`.

    document: its number. nll: fp32 [tokens], nats of each row's label; NaN without one.
    dist: on the CPU; None where the rows can't be used, and then `problem` says why.
    """

    document: int
    dist: TokenDist | None
    nll: Tensor
    problem: Problem | None = None


class Scorer(Protocol):
    """A model that is ready to read."""

    @property
    def facts(self) -> dict[str, object]:
        """How it reads, for lineage: plain JSON."""

    def __call__(self, tokens: Tokens, row_keys: Tensor) -> Iterator[DocumentRows]:
        """Every document that has tokens, once, in any order.

        row_keys: int64 per row, on which alone the row's random draws depend.
        """


def score_tokens(
    scorer: Scorer,
    tokens: Tokens,
    vocab_size: int,
    *,
    first_key: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, total, unit: None,
) -> tuple[Scored, dict[int, Problem]]:
    """The model's distributions over every document, and why the quarantined ones (by number) have none.

    The random draws of row `i` depend on the key `first_key + i` alone, so two shards of one model take keys that
    don't overlap. The rows of a quarantined document are absent and stand at no boundary, and its nll is NaN.
    """
    starts = tokens.doc_offsets.tolist()
    nll = torch.full((starts[-1],), torch.nan, dtype=torch.float32)
    dists: dict[int, TokenDist] = {}
    problems: dict[int, Problem] = {}
    done = 0
    for rows in scorer(tokens, torch.arange(starts[-1]) + first_key):
        document = rows.document
        if rows.dist is None:
            problems[document] = rows.problem or Problem("no rows", "leave it out of the corpus")
        else:
            dists[document] = rows.dist
            nll[starts[document] : starts[document + 1]] = rows.nll
        done += starts[document + 1] - starts[document]
        progress(done, starts[-1], "tokens")
    for document in range(tokens.num_docs):
        if document not in dists:
            dists[document] = absent_rows(starts[document + 1] - starts[document], vocab_size)
    dist = concatenate([absent_rows(0, vocab_size), *(dists[document] for document in range(tokens.num_docs))])
    return Scored(without_boundaries(tokens, problems), dist, nll), dict(sorted(problems.items()))


def without_boundaries(tokens: Tokens, documents: Iterable[int]) -> Tokens:
    """The same tokens, those of some documents at no boundary."""
    boundaries = tokens.boundaries.clone()
    for document in documents:
        boundaries[tokens.doc_offsets[document] : tokens.doc_offsets[document + 1]] = NO_BOUNDARY
    return replace(tokens, boundaries=boundaries)
