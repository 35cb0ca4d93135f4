"""Dynamic time warping of two token sequences: which tokens of two tokenizers stand for each other.

The cost of matching two tokens is the edit distance of their strings; a path from the first pair to the last one may
repeat tokens on either side, and its cost is the sum over its pairs (Wan et al. 2024, FuseLLM). Of equally good
predecessors a path takes the diagonal one, then the one above (source token before), then the left one (target token
before).

Most of the table is never computed. A first pass keeps only what is near the best of each row; the cost of the path
that it finds is a limit for the second pass, which leaves out pairs that no path of that cost leads through. Costs
never fall along a path, so no best path loses a pair to it: path and ties are those of the full table.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fusion_core.compilation import compiled
from fusion_core.edit_distance import (
    Codes,
    Places,
    Signatures,
    Strings,
    Words,
    bound_distances,
    clear_pattern,
    distance_to_pattern,
    encode_strings,
    longest,
    new_pattern_table,
    set_pattern,
    sign_strings,
)

Directions = NDArray[np.uint8]

DIAGONAL, UP, LEFT = 0, 1, 2
NO_LIMIT = 1 << 26
"""More than any path costs."""
UNREACHED = 1 << 30
UNKNOWN = -1
BEAM = 32
"""How much worse than the best of its row a pair may be in the first, approximate pass."""


@dataclass(frozen=True)
class Warping:
    """The best paths of documents, one after the other.

    source, target: int64 `[steps]`, the tokens that each step matches, counted from the first token of all documents.
    costs: int64 `[documents]`, edits along each path; 0 for a document without tokens on one side, which has no path.
    """

    source: Places
    target: Places
    costs: Places


@dataclass(frozen=True)
class Sequences:
    """Token sequences of documents, as strings.

    strings: every string that occurs. tokens: int64 `[tokens]`, the string of each token.
    offsets: int64 `[documents + 1]`, document `d` has the tokens `offsets[d]:offsets[d+1]`.
    """

    strings: Sequence[str]
    tokens: Places
    offsets: Places


class _Document(NamedTuple):
    """One document for the kernels.

    rows, columns: which of the different strings each token is; row_strings, column_strings: those strings.
    rows_left, columns_left: at least so many edits will the tokens after each one cost.
    distances: `[row strings, column strings]`, computed when they are needed; -1 before.
    """

    rows: Places
    columns: Codes
    row_strings: Places
    column_strings: Places
    rows_left: Codes
    columns_left: Codes
    distances: Codes


def warp(source: Sequences, target: Sequences) -> Warping:
    """The best path of each document's two token sequences.

    Time and memory grow with the tokens times the width of what has to be looked at: a few hundred tokens to both sides
    of the path for texts that agree, everything for texts that don't. Documents are spread over as many threads as
    torch uses.

    Raises:
        ValueError: the two don't hold the same number of documents, or a token names no string.
    """
    _check(source, target)
    left, right = encode_strings(source.strings, target.strings)
    signatures = sign_strings(left), sign_strings(right)

    def warp_document(doc: int) -> tuple[Places, int]:
        rows = source.tokens[source.offsets[doc] : source.offsets[doc + 1]]
        columns = target.tokens[target.offsets[doc] : target.offsets[doc + 1]]
        if not len(rows) or not len(columns):
            return np.zeros((2, 0), np.int64), 0
        path, cost = _warp(_describe(rows, columns, *signatures), left, right)
        return path + np.array([[source.offsets[doc]], [target.offsets[doc]]]), cost

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = list(pool.map(warp_document, range(len(source.offsets) - 1)))
    paths = np.concatenate([np.zeros((2, 0), np.int64), *(path for path, _ in found)], axis=1)
    return Warping(paths[0], paths[1], np.array([cost for _, cost in found], dtype=np.int64))


def _check(source: Sequences, target: Sequences) -> None:
    if len(source.offsets) != len(target.offsets):
        raise ValueError(
            f"source and target must hold the same documents, but found {len(source.offsets) - 1} and "
            f"{len(target.offsets) - 1}; align shards of one corpus"
        )
    for side in (source, target):
        if len(side.tokens) and not 0 <= side.tokens.min() <= side.tokens.max() < len(side.strings):
            raise ValueError(
                f"tokens must name strings 0..{len(side.strings) - 1}, but found {side.tokens.min()}.."
                f"{side.tokens.max()}; list every string that occurs"
            )


def _describe(rows: Places, columns: Places, left: Signatures, right: Signatures) -> _Document:
    """A document of the given strings."""
    row_strings, row_ids = np.unique(rows, return_inverse=True)
    column_strings, column_ids = np.unique(columns, return_inverse=True)
    bounds = _bound_all(_take(left, row_strings), _take(right, column_strings))
    return _Document(
        row_ids,
        column_ids.astype(np.int32),
        row_strings,
        column_strings,
        _sum_after(bounds.min(1)[row_ids]),
        _sum_after(bounds.min(0)[column_ids]),
        np.full_like(bounds, UNKNOWN),
    )


def _take(signatures: Signatures, which: Places) -> Signatures:
    return Signatures(signatures.bits[:, which], signatures.excess[which], signatures.lengths[which])


def _sum_after(costs: Codes) -> Codes:
    return np.append(np.cumsum(costs[:0:-1])[::-1], 0).astype(np.int32)


@compiled
def _bound_all(left: Signatures, right: Signatures) -> Codes:
    """Lower bounds of all distances, `[left, right]`."""
    bounds = np.empty((len(left.lengths), len(right.lengths)), np.int32)
    some = np.empty(len(right.lengths), np.int64)
    for i in range(len(left.lengths)):
        bound_distances(left, i, right, 0, len(some), some)
        bounds[i] = some
    return bounds


@compiled
def _warp(document: _Document, left: Strings, right: Strings) -> tuple[Places, int]:
    """Path `[2, steps]` of one document, and its cost."""
    table = new_pattern_table(longest(left), left.alphabet_size)
    limit, _, _, _ = _fill(document, left, right, table, NO_LIMIT, BEAM)
    cost, directions, starts, firsts = _fill(document, left, right, table, limit, NO_LIMIT)
    return _trace_back(directions, starts, firsts, len(document.columns)), cost


@compiled
def _fill(
    document: _Document, left: Strings, right: Strings, table: Words, limit: int, beam: int
) -> tuple[int, Directions, Places, Places]:
    """Cost of the best path found, and where each pair that was reached was reached from.

    Left out are pairs that no path of at most `limit` leads through, and (but in the last row) those reached from a
    pair more than `beam` above the best of the row before. Row `i` of the table starts at column `firsts[i]` and at
    `directions[starts[i]]`.

    A cost is kept as four times itself, so that the least predecessor and its direction, in order of ties, are one
    minimum: no branch to mispredict.
    """
    num_rows, num_columns = len(document.rows), len(document.columns)
    starts, firsts = np.zeros(num_rows + 1, np.int64), np.zeros(num_rows, np.int64)
    directions = np.empty(4 * (num_rows + num_columns), np.uint8)
    above, here = np.full(num_columns, UNREACHED, np.int32), np.full(num_columns, UNREACHED, np.int32)
    caps = (4 * (limit - document.columns_left)).astype(np.int32)
    first, last, least = 0, 0, 0  # columns that the row above reached, and the lowest cost there
    for i in range(num_rows):
        if len(directions) < starts[i] + num_columns - first:
            directions = np.append(directions, np.empty(len(directions) + num_columns, np.uint8))
        pattern = _string(left, document.row_strings[document.rows[i]])
        set_pattern(table, pattern)
        known, row_directions = document.distances[document.rows[i]], directions[starts[i] :]
        most = 4 * (limit - document.rows_left[i])
        near = most if i == num_rows - 1 else min(most, least + 4 * beam)
        above[last:] = UNREACHED
        diagonal, before = 0 if i == 0 else UNREACHED, UNREACHED
        begin, reached, least = -1, first, UNREACHED
        for j in range(first, num_columns):
            choice = min(diagonal + DIAGONAL, above[j] + UP, before + LEFT)
            diagonal, before = above[j], UNREACHED
            if choice < near + 4:
                cap, column = min(most, caps[j]), document.columns[j]
                distance = known[column]
                if distance == UNKNOWN:
                    text = _string(right, document.column_strings[column])
                    distance = known[column] = distance_to_pattern(table, len(pattern), text, NO_LIMIT)
                cost = (choice & ~3) + 4 * distance
                if cost <= cap:
                    before = cost
                    least = min(least, cost)
                    reached = j + 1
                    if begin < 0:
                        begin = j
            elif j > last:
                break
            here[j] = before
            row_directions[j - first] = choice & 3
        clear_pattern(table, pattern)
        firsts[i], starts[i + 1] = first, starts[i] + reached - first
        first, last = begin, reached
        above, here = here, above
    cost = above[num_columns - 1] // 4 if last == num_columns else NO_LIMIT
    return cost, directions, starts, firsts


@compiled
def _string(strings: Strings, i: int) -> Codes:
    return strings.codes[strings.offsets[i] : strings.offsets[i + 1]]


@compiled
def _trace_back(directions: Directions, starts: Places, firsts: Places, num_columns: int) -> Places:
    """The path `[2, steps]` to the last pair, from its first pair on."""
    i, j = len(firsts) - 1, num_columns - 1
    path = np.empty((2, len(firsts) + num_columns), np.int64)
    step = path.shape[1]
    while True:
        step -= 1
        path[0, step], path[1, step] = i, j
        if i == 0 and j == 0:
            return path[:, step:].copy()
        direction = directions[starts[i] + j - firsts[i]]
        if direction != LEFT:
            i -= 1
        if direction != UP:
            j -= 1
