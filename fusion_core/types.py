"""The values that fusion works on: frozen dataclasses of tensors, one document shard at a time.

Conventions, once for the whole package (METHOD: "positions and rows"):

- Row `i` of a model's distributions is what it expects after having read its tokens `0..i`; its *label*
  is token `i + 1` of the same document. The last row of a document has no label.
- Rows of all documents of a shard lie one after the other; `doc_offsets` cuts them.
- A *boundary* is the byte offset in the document's UTF-8 text where a token ends. Two rows of two
  tokenizers speak of the same thing exactly when they stand at the same boundary. Tokens without bytes
  (begin, end, other special tokens) stand where the token before them stands; see `Tokens.boundaries`.
- Log-probabilities are natural logarithms under the full softmax, never renormalised over what was kept.
"""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_ROUNDING = 0.01
"""How far rounding may lift the log of a probability above 0: logits of 1e4 in fp32 round by 1e-3."""
NO_BOUNDARY = -1
"""A boundary that can't be proven: no row of another tokenizer is ever compared with this one."""


@dataclass(frozen=True)
class TokenDist:
    """Sparse next-token distributions, ragged: the entries of row `r` are `row_offsets[r]:row_offsets[r+1]`.

    In each row, kept + tail + unknown mass is one (up to the rounding of storage). An *absent* row, one
    that nothing is known about, has no entries, no tail, and all its mass unknown.

    row_offsets: int64, starts at 0, never falls, ends at the number of entries.
    ids: token ids in `0..vocab_size-1`, none twice within a row.
    logprobs: natural log of each kept token's probability.
    tail_logprob: log of the mass certainly *outside* the kept ids; -inf for none.
    unknown_logprob: log of the mass that may lie anywhere, kept ids included; -inf for none.
    """

    row_offsets: Int[Tensor, "rows_plus_one"]
    ids: Int[Tensor, "entries"]
    logprobs: Float[Tensor, "entries"]
    tail_logprob: Float[Tensor, "rows"]
    unknown_logprob: Float[Tensor, "rows"]
    vocab_size: int

    def __post_init__(self) -> None:
        rows, entries = self.tail_logprob.shape, self.ids.shape
        shapes = [tuple(t.shape) for t in (self.row_offsets, self.unknown_logprob, self.logprobs)]
        if len(rows) != 1 or len(entries) != 1 or shapes != [(rows[0] + 1,), tuple(rows), tuple(entries)]:
            raise ValueError(
                f"expected row_offsets one longer than tail_logprob {tuple(rows)}, unknown_logprob as long as it, and "
                f"logprobs as long as ids {tuple(entries)}, found {shapes}; pass one of each per row and per entry"
            )

    def check(self) -> None:
        """Raises ValueError unless offsets cut the entries, ids lie in the vocabulary, and no log is NaN or above 0.

        Reads every entry once, so it is for where rows come in, not for where they are worked on.
        """
        widths, entries = self.row_offsets.diff(), len(self.ids)
        first, last = int(self.row_offsets[0]), int(self.row_offsets[-1])
        if (first, last) != (0, entries) or bool((widths < 0).any()):
            raise ValueError(
                f"row_offsets must rise from 0 to the number of entries, {entries}, but found {first}..{last}, "
                f"{int((widths < 0).sum())} times falling; read the rows again"
            )
        if entries and not 0 <= int(self.ids.min()) <= int(self.ids.max()) < self.vocab_size:
            raise ValueError(
                f"expected kept ids in 0..{self.vocab_size - 1}, found {int(self.ids.min())}..{int(self.ids.max())}; "
                "extract with the vocabulary of the tokenizer that made them"
            )
        logs = {name: getattr(self, name) for name in ("logprobs", "tail_logprob", "unknown_logprob")}
        wrong = {name: int((~(log <= _ROUNDING)).sum()) for name, log in logs.items()}
        if any(wrong.values()):
            raise ValueError(
                f"expected logs of probabilities, at most 0, found NaN or larger ones: {wrong}; extract again"
            )

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return self.tail_logprob.shape[0]

    @property
    def row_of_entry(self) -> Int[Tensor, "entries"]:
        """The row that each entry belongs to."""
        widths = self.row_offsets.diff()
        rows = torch.arange(self.num_rows, device=widths.device)
        return rows.repeat_interleave(widths)

    @property
    def present(self) -> Tensor:
        """Bool per row: whether anything is known about it (less than all of its mass is unknown)."""
        return (self.row_offsets.diff() > 0) | (self.tail_logprob > -torch.inf)

    def rows(self, start: int, stop: int) -> "TokenDist":
        """The rows `start..stop-1` as a distribution of their own."""
        first, last = int(self.row_offsets[start]), int(self.row_offsets[stop])
        return replace(
            self,
            row_offsets=self.row_offsets[start : stop + 1] - first,
            ids=self.ids[first:last],
            logprobs=self.logprobs[first:last],
            tail_logprob=self.tail_logprob[start:stop],
            unknown_logprob=self.unknown_logprob[start:stop],
        )

    def to(self, device: torch.device | str) -> "TokenDist":
        """The same on another device."""
        moved = {f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Tokens:
    """The token ids of a shard's documents, and where each token ends in its document.

    ids: int64, all documents one after the other, special tokens included.
    boundaries: int64 byte offset in the document where token `i` ends, or `NO_BOUNDARY`. The token that
        begins a sequence ends at 0; the end token has `NO_BOUNDARY` (the row before it already stands at
        the document's last byte); of several tokens that end at one offset only the last keeps it.
    doc_offsets: int64, document `d` has the tokens `doc_offsets[d]:doc_offsets[d+1]`.
    """

    ids: Int[Tensor, "tokens"]
    boundaries: Int[Tensor, "tokens"]
    doc_offsets: Int[Tensor, "docs_plus_one"]

    def __post_init__(self) -> None:
        tokens, offsets = self.ids.shape[0], self.doc_offsets.tolist()
        if self.boundaries.shape != self.ids.shape:
            raise ValueError(
                f"expected one boundary per token, found {tuple(self.boundaries.shape)} boundaries for "
                f"{tuple(self.ids.shape)} ids; take them from token_boundaries"
            )
        if not offsets or (offsets[0], offsets[-1]) != (0, tokens) or offsets != sorted(offsets):
            raise ValueError(
                f"doc_offsets must rise from 0 to the number of tokens, {tokens}, but found {_outline(offsets)}; pass "
                "where each document begins, and the end of the last"
            )

    @property
    def num_docs(self) -> int:
        """How many documents there are."""
        return self.doc_offsets.shape[0] - 1

    @property
    def doc_of_token(self) -> Int[Tensor, "tokens"]:
        """The document that each token belongs to."""
        docs = torch.arange(self.num_docs, device=self.doc_offsets.device)
        return docs.repeat_interleave(self.doc_offsets.diff())


@dataclass(frozen=True)
class Scored:
    """A shard as one model read it.

    tokens: its tokens; row `i` of `dist` is what the model expects after token `i`.
    nll: fp32, nats of the label of each row under the full softmax; NaN where there is no label.
    """

    tokens: Tokens
    dist: TokenDist
    nll: Float[Tensor, "tokens"]

    def __post_init__(self) -> None:
        _check_lengths("token", len(self.tokens.ids), rows=self.dist.num_rows, nll=len(self.nll))

    @property
    def wanted(self) -> Bool[Tensor, "tokens"]:
        """Which rows a teacher is wanted for: all of plain documents, of conversations those whose label is text.

        The others of a conversation are absent and have no nll. All rows of a document that couldn't be read are like
        that, and all are wanted: nothing tells which are text.
        """
        hidden, doc, docs = self.nll.isnan() & ~self.dist.present, self.tokens.doc_of_token, self.tokens.num_docs
        labelled = torch.zeros_like(hidden)
        labelled[:-1] = doc.diff() == 0  # the last row may be hidden in a plain document too
        was_read = torch.bincount(doc[~hidden], minlength=docs) > 0
        hides = torch.bincount(doc[hidden & labelled], minlength=docs) > 0
        return ~(hidden & (was_read & hides)[doc])


@dataclass(frozen=True)
class Aligned:
    """One source's distributions brought onto the target's rows and the target's vocabulary.

    dist: one row per target token; absent where no rule fills it.
    span_nll: fp32, nats that the source spent on the bytes between the previous common boundary of the
        document and this row's; 0 at a document's first common boundary, NaN where this row stands at no
        common boundary. Cumulative sums of it, read at rows that several candidates share, give each
        candidate's cost of the same bytes.
    span_tokens: int64, how many of the source's own tokens `span_nll` adds up; 0 where it is 0 or NaN.
    cross_entropy: fp16, nats per token of the source's own, mean over all labels of each document, the end
        token's included; NaN for a document without labels. Only the original's rules compare it, and
        None where they aren't asked for.
    """

    dist: TokenDist
    span_nll: Float[Tensor, "target_tokens"]
    span_tokens: Int[Tensor, "target_tokens"]
    cross_entropy: Float[Tensor, "docs"] | None = None

    def __post_init__(self) -> None:
        _check_lengths("row", self.dist.num_rows, span_nll=len(self.span_nll), span_tokens=len(self.span_tokens))


@dataclass(frozen=True)
class Fused:
    """The teacher: one distribution per target row, and who gave it.

    winner: int64 index into the candidates per row; -1 where the row is absent. A mixture names its
        heaviest part.
    """

    dist: TokenDist
    winner: Int[Tensor, "target_tokens"]

    def __post_init__(self) -> None:
        _check_lengths("row", self.dist.num_rows, winner=len(self.winner))


@dataclass(frozen=True)
class VocabMap:
    """Where each source token goes in the target's vocabulary.

    ids: int64 per source id, the target id, or -1 for nowhere. Several source ids may share a target id.
    target_size: number of ids in the target's vocabulary.
    in_context: the text around a candidate decides where it goes; `ids` is what is left where that can't be told.
    """

    ids: Int[Tensor, "source_vocab"]
    target_size: int
    in_context: bool = False

    def __post_init__(self) -> None:
        if len(self.ids) and not -1 <= int(self.ids.min()) <= int(self.ids.max()) < self.target_size:
            raise ValueError(
                f"expected target ids in 0..{self.target_size - 1}, or -1 for nowhere, found {int(self.ids.min())}.."
                f"{int(self.ids.max())}; map to the vocabulary of the target's own tokenizer"
            )


def _check_lengths(of: str, expected: int, **found: int) -> None:
    if any(length != expected for length in found.values()):
        raise ValueError(f"expected {expected} values, one per {of}, found {found}; pass those of the same shard")


def _outline(offsets: list[int]) -> str:
    """The numbers, or the ends of a long list."""
    return str(offsets) if len(offsets) <= 8 else f"{offsets[:4]} ... {offsets[-3:]}".replace("] ... [", " ... ")
