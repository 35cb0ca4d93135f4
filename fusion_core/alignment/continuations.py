"""How the text goes on after each target row, as the source sees it: pieces of text and their probabilities.

A source stands at a boundary in more than one way. The *path* is the way it read: its row there says what comes next.
A *cover* is a longer token that the source could have read instead of its last one or two: it runs past the boundary,
and its remaining bytes are a continuation too (Phan et al. 2024, arXiv 2410.09303). Path and covers are weighed by what
the source gave them, from the last row that they share. *Looking ahead* replaces the source token that was read by
itself followed by each candidate of its next row: a finer partition of the same mass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fusion_core.alignment.entries import NO_ROW, gather_entries, gather_missing, log_sum
from fusion_core.alignment.rows import Standing
from fusion_core.alignment.source_text import SourceText
from fusion_core.alignment.surface_bytes import Text, begin_with

NO_READ = -1


@dataclass(frozen=True)
class Reads:
    """Runs of source tokens `first .. first + length - 1`, each without its first `skip` bytes."""

    first: Int[Tensor, "reads"]
    length: Int[Tensor, "reads"]
    skip: Int[Tensor, "reads"]


@dataclass(frozen=True)
class Continuations:
    """What the source expects after each target row.

    Entry `e` of row `row[e]` is the text of the run `read[e]` of `reads` (of nothing where it is -1) followed by the
    surface of the source's `token[e]` without its first `skip[e]` bytes; its probability is exp(`logprobs[e]`).
    Entries, tail and unknown mass of a row sum to one; a row that the source says nothing about is all unknown.
    """

    row: Int[Tensor, "entries"]
    read: Int[Tensor, "entries"]
    token: Int[Tensor, "entries"]
    skip: Int[Tensor, "entries"]
    logprobs: Float[Tensor, "entries"]
    tail_logprob: Float[Tensor, "rows"]
    unknown_logprob: Float[Tensor, "rows"]
    reads: Reads

    def select(self, keep: Bool[Tensor, "entries"]) -> "Continuations":
        """The same without the entries that aren't kept."""
        kept = keep.nonzero().squeeze(1)
        row, read, token, skip, logprobs = (
            values[kept] for values in (self.row, self.read, self.token, self.skip, self.logprobs)
        )
        return replace(self, row=row, read=read, token=token, skip=skip, logprobs=logprobs)


@dataclass(frozen=True)
class _Part:
    """Entries of one origin: their weights, and per row the weight of tail and of what was lost, before division."""

    row: Int[Tensor, "entries"]
    token: Int[Tensor, "entries"]
    skip: Int[Tensor, "entries"]
    logprobs: Float[Tensor, "entries"]
    tail: Float[Tensor, "rows"]
    lost: Float[Tensor, "rows"]

    def total(self) -> Float[Tensor, "rows"]:
        kept = log_sum(self.row, self.logprobs, len(self.tail))
        return torch.logaddexp(torch.logaddexp(kept, self.tail), self.lost)

    def join(self, other: "_Part") -> "_Part":
        """The entries of both, and the weights of what neither has as entries."""
        columns = ((self.row, other.row), (self.token, other.token), (self.skip, other.skip))
        row, token, skip = (torch.cat(column) for column in columns)
        logprobs = torch.cat([self.logprobs, other.logprobs])
        tail, lost = torch.logaddexp(self.tail, other.tail), torch.logaddexp(self.lost, other.lost)
        return _Part(row, token, skip, logprobs, tail, lost)

    def without(self, rows: Bool[Tensor, "rows"]) -> "_Part":
        """The same with nothing in the given rows."""
        keep = ~rows[self.row]
        nothing = [values.masked_fill(rows, -torch.inf) for values in (self.tail, self.lost)]
        return _Part(self.row[keep], self.token[keep], self.skip[keep], self.logprobs[keep], *nothing)


def continue_text(
    source: SourceText,
    standing: Standing,
    label_end: Int[Tensor, "rows"],
    cover: int,
    lookahead: int,
    max_unknown: float,
) -> Continuations:
    """What the source expects after each target row; see the module's first lines.

    label_end: boundary where each row's label ends, or -1: looking ahead stops behind it.
    max_unknown: a row whose unkept covers may weigh more than this share of it goes without covers.
    """
    path = _follow_path(source, standing)
    weight = torch.zeros_like(path.tail).masked_fill(standing.row == NO_ROW, -torch.inf)
    if bool((standing.inside > 0).any()):
        beyond = _go_on(source, standing)
        path, weight = path.join(beyond), beyond.total().where(standing.inside > 0, weight)
    covers = [_find_covers(source, standing, back) for back in range(1, cover + 1)]
    found = _weigh(path, weight, reduce(_Part.join, covers) if covers else None, max_unknown)
    return look_ahead(source, standing, label_end, found, lookahead) if lookahead else found


def _follow_path(source: SourceText, standing: Standing) -> _Part:
    """What the source's rows expect at the boundaries that it shares with the target."""
    start = standing.row.where(standing.inside == 0, NO_ROW)
    row, token, logprobs = gather_entries(source.dist, start)
    tail, unknown = gather_missing(source.dist, start)
    return _Part(row, token, torch.zeros_like(row), logprobs, tail, unknown.masked_fill(start == NO_ROW, -torch.inf))


def _go_on(source: SourceText, standing: Standing) -> _Part:
    """Inside the source's tokens: those of its candidates that go on past the target's boundary.

    The one that ends right there would go on in a way that nobody computed: its mass is tail. Of candidates that would
    have ended earlier nothing is known either, but a tokenizer hardly ever cuts the same bytes in two ways.
    """
    start = standing.row.where(standing.inside > 0, NO_ROW)
    text = Text(source.content, source.ends[start], standing.inside)
    row, token, logprobs = gather_entries(source.dist, start)
    begins = begin_with(source.surfaces, token, text, row)
    row, token, logprobs = row[begins], token[begins], logprobs[begins]
    skip = standing.inside[row]
    stops = source.surfaces.lengths[token] == skip
    unknown = gather_missing(source.dist, start)[1].masked_fill(start == NO_ROW, -torch.inf)
    lost = source.bound_lost(start, text, torch.bincount(row, minlength=len(start)))
    tail = log_sum(row[stops], logprobs[stops], len(start))
    return _Part(row[~stops], token[~stops], skip[~stops], logprobs[~stops], tail, torch.logaddexp(unknown, lost))


def _find_covers(source: SourceText, standing: Standing, back: int) -> _Part:
    """Tokens that could have been read from `back` rows before the row where the target stands, past its boundary."""
    start = standing.row - back
    has_start = (standing.row != NO_ROW) & (start >= source.first_of_doc[standing.row])
    start = start.where(has_start, NO_ROW)
    has_start &= source.without_bytes[standing.row] == source.without_bytes[start]
    length = (source.ends[standing.row] + standing.inside - source.ends[start]) * has_start
    text = Text(source.content, source.ends[start], length)
    start = start.where(source.count_longer(text) > 0, NO_ROW)
    row, token, logprobs = gather_entries(source.dist, start)
    covers = begin_with(source.surfaces, token, text, row) & (source.surfaces.lengths[token] > length[row])
    row, token, logprobs = row[covers], token[covers], logprobs[covers]
    read_since = source.spent[standing.row] - source.spent[start]
    lost = source.bound_lost(start, text, torch.bincount(row, minlength=len(start)))
    return _Part(
        row, token, length[row], logprobs + read_since[row], torch.full_like(lost, -torch.inf), lost + read_since
    )


def _weigh(path: _Part, weight: Float[Tensor, "rows"], covers: _Part | None, max_unknown: float) -> Continuations:
    """Path and covers over their common total.

    weight: log of the path's: 1, or what is left of it inside a token, or nothing where the target stands nowhere.
    """
    parts, total = path, weight
    if covers:
        unsure = (covers.lost - torch.logaddexp(weight, covers.total())).nan_to_num(nan=-torch.inf).exp() > max_unknown
        covers = covers.without(unsure)
        parts, total = path.join(covers), torch.logaddexp(weight, covers.total())
    nothing, total = total == -torch.inf, total.clamp(min=torch.finfo(total.dtype).min)
    row = parts.row
    return Continuations(
        row=row,
        read=torch.full_like(row, NO_READ),
        token=parts.token,
        skip=parts.skip,
        logprobs=parts.logprobs - total[row],
        tail_logprob=path.tail - total,
        unknown_logprob=(parts.lost - total).masked_fill(nothing, 0.0),
        reads=Reads(row[:0], row[:0], row[:0]),
    )


def look_ahead(
    source: SourceText, standing: Standing, label_end: Int[Tensor, "rows"], found: Continuations, steps: int
) -> Continuations:
    """The same with the source token really read replaced by itself and each candidate of its next row, `steps` times.

    A row is refined as long as what was read doesn't settle its label: see `SourceText.leaves_open`.
    The tail of a row looked into may continue in any way, so it is unknown here.
    """
    settled: list[Continuations] = []
    open_rows = (standing.row != NO_ROW) & (label_end >= 0)
    for step in range(1, steps + 1):
        read_row = (standing.row + step).where(open_rows, 0)
        open_rows = open_rows & source.leaves_open(standing.row, read_row, label_end)
        read_row = read_row.where(open_rows, 0)  # behind the shard's last row there is none
        read_token = source.tokens.ids[read_row].where(open_rows, NO_READ)
        was_read = found.token == read_token[found.row]
        if step == 1:  # a cover may be the same token; the path has less of it behind the boundary
            was_read &= found.skip == standing.inside[found.row]
        settled.append(found.select(~was_read))
        found = _read_on(source, found.select(was_read), standing, read_row, step)
        open_rows = torch.zeros_like(open_rows).index_fill(0, found.row, True)
    return _join([*settled, found])


def _read_on(
    source: SourceText, read: Continuations, standing: Standing, read_row: Int[Tensor, "rows"], step: int
) -> Continuations:
    """The entries `read` (one per row at most) replaced: `step` tokens read, then each candidate of `read_row`."""
    rows = read.row
    run = torch.full_like(read_row, NO_READ)
    run[rows] = torch.arange(len(rows), device=rows.device) + len(read.reads.first)
    weight = torch.full_like(read.tail_logprob, -torch.inf)
    weight[rows] = read.logprobs
    taken = torch.full_like(read_row, NO_ROW)
    taken[rows] = read_row[rows]
    row, token, logprobs = gather_entries(source.dist, taken)
    tail, unknown = gather_missing(source.dist, taken)
    return Continuations(
        row=row,
        read=run[row],
        token=token,
        skip=torch.zeros_like(row),
        logprobs=logprobs + weight[row],
        tail_logprob=read.tail_logprob,
        unknown_logprob=torch.logaddexp(read.unknown_logprob, weight + torch.logaddexp(tail, unknown)),
        reads=Reads(
            torch.cat([read.reads.first, standing.row[rows] + 1]),
            torch.cat([read.reads.length, torch.full_like(rows, step)]),
            torch.cat([read.reads.skip, standing.inside[rows]]),
        ),
    )


def _join(parts: Sequence[Continuations]) -> Continuations:
    """The entries of all parts, with the tail, unknown mass and runs of the last."""
    columns = zip(*((p.row, p.read, p.token, p.skip, p.logprobs) for p in parts), strict=True)
    row, read, token, skip, logprobs = (torch.cat(column) for column in columns)
    return replace(parts[-1], row=row, read=read, token=token, skip=skip, logprobs=logprobs)
