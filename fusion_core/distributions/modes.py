"""Extraction modes: which candidates of a row are kept, and the reduction of logits to them.

`ExtractionMode` is the union of the modes; each is called with logits and returns a `TokenDist` whose
log-probabilities are those of the *full* softmax, over all columns of the logits. Columns past the tokenizer's
vocabulary (padded embedding rows) are part of that softmax but are never candidates: their mass is tail.

At a temperature T other than 1, kept, tail and unknown are those of softmax(logits / T). A tail can't be tempered
later, so it is done here; the nll of labels is always that of the model itself, at T = 1.
"""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from fusion_core.distributions.draws import draw_ids, draw_uniforms
from fusion_core.distributions.ranking import rank_ids, split_off
from fusion_core.distributions.rows import concatenate, offsets_of
from fusion_core.spec import Spec
from fusion_core.types import TokenDist

NO_LABEL = -1
_CPU_CHUNK_ELEMENTS = 2**22  # what stays near the core's caches through the passes over a chunk


class _Mode(Spec, ABC):
    """What the extraction modes share: called with logits, they return the distributions of all rows."""

    chunk_elements: ClassVar[int] = 2**25  # 128 MiB of fp32 logits at a time
    kind: str
    temperature: float = Field(
        default=1.0, gt=0, title="Temperature", description="Divides the logits; above 1 the kept rows are flatter."
    )

    def __call__(self, logits: Float[Tensor, "rows columns"], vocab_size: int) -> TokenDist:
        """The kept candidates of each row with the tail of the rest; see `reduce_logits`."""
        labels = torch.full(logits.shape[:1], NO_LABEL, device=logits.device)
        return reduce_logits(logits, labels, self, vocab_size)[0]

    def round_logits(self, logits: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """A chunk of logits in the precision that everything after is computed from."""
        return logits

    @abstractmethod
    def reduce(
        self, logits: Float[Tensor, "rows columns"], row_keys: Int[Tensor, "rows"], vocab_size: int
    ) -> tuple[TokenDist, Float[Tensor, "rows"]]:
        """The distributions of one chunk of fp32 logits, which are used up, and the log-sum-exp of every row."""


class TopK(_Mode):
    """The `k` most likely tokens of each row, falling; of equal logits the lower id comes first."""

    kind: Literal["top_k"] = "top_k"
    k: int = Field(
        default=10, ge=1, title="Candidates", description="How many of the most likely tokens each row keeps."
    )

    def reduce(
        self, logits: Float[Tensor, "rows columns"], row_keys: Int[Tensor, "rows"], vocab_size: int
    ) -> tuple[TokenDist, Float[Tensor, "rows"]]:
        """The `k` most likely of each row."""
        ids = rank_ids(logits[:, :vocab_size], self.k)
        values, log_rest, log_normalizer = split_off(logits, ids)
        dist = TokenDist(
            row_offsets=offsets_of(torch.full_like(row_keys, ids.shape[1])),
            ids=ids.flatten(),
            logprobs=(values - log_normalizer.unsqueeze(1)).flatten(),
            tail_logprob=log_rest - log_normalizer,
            unknown_logprob=torch.full_like(log_rest, -torch.inf),
            vocab_size=vocab_size,
        )
        return dist, log_normalizer


class TopP(_Mode):
    """The fewest most likely tokens whose mass reaches `p`, at least one and at most `k_max`."""

    kind: Literal["top_p"] = "top_p"
    p: float = Field(
        default=0.95, gt=0, le=1, title="Mass", description="Share of the probability mass that a row keeps."
    )
    k_max: int = Field(default=64, ge=1, title="Most candidates", description="No row keeps more candidates than this.")

    def reduce(
        self, logits: Float[Tensor, "rows columns"], row_keys: Int[Tensor, "rows"], vocab_size: int
    ) -> tuple[TokenDist, Float[Tensor, "rows"]]:
        """The most likely of each row until their mass reaches `p`."""
        ids = rank_ids(logits[:, :vocab_size], self.k_max)
        values, log_rest, log_normalizer = split_off(logits, ids)
        logprobs = values - log_normalizer.unsqueeze(1)
        probs = logprobs.exp()
        mass_before = probs.cumsum(1) - probs
        keep = mass_before < self.p
        keep[:, :1] = True
        dropped = logprobs.masked_fill(keep, -torch.inf)
        log_tail = torch.cat([dropped, (log_rest - log_normalizer).unsqueeze(1)], 1).logsumexp(1)
        dist = TokenDist(
            row_offsets=offsets_of(keep.sum(1)),
            ids=ids[keep],
            logprobs=logprobs[keep],
            tail_logprob=log_tail,
            unknown_logprob=torch.full_like(log_tail, -torch.inf),
            vocab_size=vocab_size,
        )
        return dist, log_normalizer


class Sampled(_Mode):
    """`n` random draws per row, each token's probability being its share of them; ids rise.

    The expectation of a row is the softmax over the tokenizer's vocabulary itself, so nothing is missing: no
    tail, no unknown mass. It stays so under every linear map of the ids, and with it the expectation of every
    loss that is linear in the teacher and of its gradient; the likeliest few, cut off, have a biased one
    (Anshumann et al. 2025). Draws depend on the seed and the row's key alone; see `draw_ids` for their variance.
    """

    chunk_elements: ClassVar[int] = 2**23  # their running sums are float64
    kind: Literal["sampled"] = "sampled"
    n: int = Field(default=12, ge=1, title="Draws", description="How many tokens are drawn per row.")
    seed: int = Field(default=0, ge=0, lt=2**63, title="Seed", description="Another one draws other tokens.")

    def reduce(
        self, logits: Float[Tensor, "rows columns"], row_keys: Int[Tensor, "rows"], vocab_size: int
    ) -> tuple[TokenDist, Float[Tensor, "rows"]]:
        """The shares of `n` draws; padded columns are never drawn."""
        log_normalizer = logits.logsumexp(1)
        real = logits[:, :vocab_size]
        weights = (real - real.amax(1, keepdim=True)).exp_()
        drawn = draw_ids(weights, draw_uniforms(row_keys, self.n, self.seed))
        row = torch.arange(len(drawn), device=drawn.device).unsqueeze(1)
        entries = (row * vocab_size + drawn).flatten()
        keys, counts = entries.unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
        nothing = torch.full_like(log_normalizer, -torch.inf)
        dist = TokenDist(
            row_offsets=offsets_of(torch.bincount(keys // vocab_size, minlength=len(drawn))),
            ids=keys % vocab_size,
            logprobs=(counts.float() / self.n).log(),
            tail_logprob=nothing,
            unknown_logprob=nothing,
            vocab_size=vocab_size,
        )
        return dist, log_normalizer


class ReferenceTopK(_Mode):
    """The `k` largest logits of each row as the original keeps and reads them; of equal ones the lower id comes first.

    Logits, and with them nll, are those of fp16; the kept ones are rounded to bf16 once more, which the original does
    before its softmax and which no dropping of candidates in between can change. The log-probabilities come as
    float64, in which differences within a row are exactly those of the rounded logits, so that a softmax of
    any of them is the original's.
    """

    kind: Literal["reference_top_k"] = "reference_top_k"
    k: int = Field(default=10, ge=1, title="Candidates", description="How many of the largest logits each row keeps.")

    def round_logits(self, logits: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """A chunk of logits, rounded to fp16."""
        return logits.half()

    def reduce(
        self, logits: Float[Tensor, "rows columns"], row_keys: Int[Tensor, "rows"], vocab_size: int
    ) -> tuple[TokenDist, Float[Tensor, "rows"]]:
        """The `k` largest of each row, normalised together with the rest after rounding."""
        ids = rank_ids(logits[:, :vocab_size], self.k)
        values, log_rest, log_normalizer = split_off(logits, ids)
        given = (values * self.temperature).half()  # as they were before the division
        kept = (given.bfloat16() / self.temperature).double()
        rest = log_rest.double().unsqueeze(1)
        log_total = torch.cat([kept, rest], 1).logsumexp(1, keepdim=True)
        tail = (rest - log_total).squeeze(1)
        dist = TokenDist(
            row_offsets=offsets_of(torch.full_like(row_keys, ids.shape[1])),
            ids=ids.flatten(),
            logprobs=(kept - log_total).flatten(),
            tail_logprob=tail,
            unknown_logprob=torch.full_like(tail, -torch.inf),
            vocab_size=vocab_size,
        )
        return dist, log_normalizer


ExtractionMode = Annotated[TopK | TopP | Sampled | ReferenceTopK, Field(discriminator="kind")]


@torch.no_grad()
def reduce_logits(
    logits: Float[Tensor, "rows columns"],
    labels: Int[Tensor, "rows"],
    mode: _Mode,
    vocab_size: int,
    chunk_rows: int | None = None,
    row_keys: Int[Tensor, "rows"] | None = None,
) -> tuple[TokenDist, Float[Tensor, "rows"]]:
    """The rows' distributions and the nll of their labels: fp32, nats under the full softmax.

    labels: id of each row's label; `NO_LABEL` (-1) gives an nll of NaN.
    vocab_size: number of the tokenizer's ids; no id from there on becomes a candidate.
    chunk_rows: rows that are copied to fp32 at a time; bounds the memory, never changes the result.
    row_keys: int64, what the random draws of each row depend on; the row's number by default. Whoever reduces
        rows in several calls gives each row a key of its own, the same however the rows are batched.

    Raises ValueError for a row with NaN or +inf (`finite_rows` tells which), for labels out of range and
    for a vocabulary that the logits don't cover.
    """
    _check_columns(logits, vocab_size)
    rows, columns = logits.shape
    _check_reducible(labels, row_keys, rows, columns)
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"expected chunks of at least 1 row, found {chunk_rows}; or pass none")
    elements = mode.chunk_elements if logits.is_cuda else min(mode.chunk_elements, _CPU_CHUNK_ELEMENTS)
    chunk_rows = chunk_rows or max(1, elements // columns)
    row_keys = torch.arange(rows, device=logits.device) if row_keys is None else row_keys
    # One buffer for all chunks: small results that stay would otherwise sit in each freed one and keep it from reuse.
    buffer = torch.empty(min(chunk_rows, rows), columns, dtype=torch.float32, device=logits.device)
    dists, nlls = [], []
    for start in range(0, max(rows, 1), chunk_rows):
        part = slice(start, start + chunk_rows)
        given = mode.round_logits(logits[part])
        dist, nll = _reduce_chunk(
            buffer[: len(given)].copy_(given), labels[part], mode, vocab_size, row_keys[part], start
        )
        dists.append(dist)
        nlls.append(nll)
    return concatenate(dists), torch.cat(nlls)


def _reduce_chunk(
    chunk: Float[Tensor, "rows columns"],
    labels: Int[Tensor, "rows"],
    mode: _Mode,
    vocab_size: int,
    row_keys: Int[Tensor, "rows"],
    first_row: int,
) -> tuple[TokenDist, Float[Tensor, "rows"]]:
    """What `reduce_logits` returns, of one chunk that is used up."""
    _check_finite(chunk, first_row)
    label_logits = chunk.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
    if mode.temperature == 1:
        dist, log_normalizer = mode.reduce(chunk, row_keys, vocab_size)
    else:
        log_normalizer = chunk.logsumexp(1)
        dist, _ = mode.reduce(chunk.div_(mode.temperature), row_keys, vocab_size)
    return dist, (log_normalizer - label_logits).masked_fill(labels == NO_LABEL, torch.nan)


def finite_rows(logits: Float[Tensor, "rows columns"], vocab_size: int) -> Bool[Tensor, "rows"]:
    """Which rows can be reduced: finite for every id of the vocabulary, and no NaN or +inf past it.

    Padded columns may be -inf: some models mask them so.
    Raises ValueError for a vocabulary that the logits don't cover.
    """
    _check_columns(logits, vocab_size)
    real, padding = logits[:, :vocab_size], logits[:, vocab_size:]
    finite = real.sum(1, dtype=torch.float32).isfinite()
    if not bool(finite.all()):  # a sum of finite ones may overflow
        finite[~finite] = real[~finite].isfinite().all(1)
    return finite & (padding < torch.inf).all(1)


def _check_columns(logits: Tensor, vocab_size: int) -> None:
    if logits.ndim != 2:
        raise ValueError(f"expected logits [rows, columns], found {tuple(logits.shape)}; flatten the batch")
    if not 1 <= vocab_size <= logits.shape[1]:
        found = f"logits score {logits.shape[1]} tokens but the vocabulary has {vocab_size}"
        raise ValueError(f"{found}; pass the tokenizer's own")


def _check_reducible(labels: Tensor, row_keys: Tensor | None, rows: int, columns: int) -> None:
    if labels.shape != (rows,):
        raise ValueError(f"expected one label for each of {rows} rows, found {tuple(labels.shape)}; pass -1 for none")
    if row_keys is not None and row_keys.shape != (rows,):
        raise ValueError(f"expected one key for each of {rows} rows, found {tuple(row_keys.shape)}; or pass none")
    if rows and (int(labels.min()) < NO_LABEL or int(labels.max()) >= columns):
        found = f"{int(labels.min())}..{int(labels.max())}"
        raise ValueError(f"expected labels in 0..{columns - 1} or -1 for none, found {found}; check the tokenizer")


def _check_finite(chunk: Tensor, first_row: int) -> None:
    bad = (~chunk.amax(1).isfinite()).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"expected finite logits, found NaN or infinity in {len(bad)} of {len(chunk)} rows, first in row"
            f" {first_row + int(bad[0])}; leave out the documents of the rows that finite_rows denies"
        )
