"""The nearest of many strings, for many strings: which token of a vocabulary differs least from a given one.

Candidates lie in buckets of equal length and are visited from the query's own length outwards; most are ruled out by
the characters that they share with the query, before any distance is computed.
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

CHUNK = 256
"""Queries that a thread takes at a time: enough to pay for the call, few enough that all threads end together."""
BLOCK = 128
"""Candidates whose bounds are computed at a time, by vector instructions."""
FAR = 1 << 40


@dataclass(frozen=True)
class Nearest:
    """Where the nearest candidates are.

    index: int64 `[queries]`, place of the nearest candidate; -1 if there are none.
    distance: int64 `[queries]`, edit distance to it; 0 if there is none.
    """

    index: NDArray[np.int64]
    distance: NDArray[np.int64]


def find_nearest(queries: Sequence[str], candidates: Sequence[str]) -> Nearest:
    """The candidate of least edit distance to each query, in code points; of equally near ones the first.

    Runs on as many threads as torch does (`torch.get_num_threads`); their number doesn't change the result.
    """
    first_place = {text: place for place, text in reversed(list(enumerate(candidates)))}
    index = np.array([first_place.get(text, -1) for text in queries], dtype=np.int64)
    distance = np.zeros_like(index)
    inexact = np.flatnonzero(index < 0).tolist()
    if not candidates or not inexact:
        return Nearest(index, distance)
    unique = {text: place for place, text in enumerate(dict.fromkeys(queries[i] for i in inexact))}
    found = _search(list(unique), candidates)
    places = [unique[queries[i]] for i in inexact]
    index[inexact], distance[inexact] = found.index[places], found.distance[places]
    return Nearest(index, distance)


class _Index(NamedTuple):
    """Candidates in order of length, then place.

    places: of each in the caller's sequence. buckets: those of `n` characters are `buckets[n]:buckets[n+1]`.
    """

    strings: Strings
    signatures: Signatures
    places: Places
    buckets: Places


def _search(queries: Sequence[str], candidates: Sequence[str]) -> Nearest:
    """`find_nearest` by distances alone."""
    by_length = np.argsort([len(c) for c in candidates], kind="stable")
    asked, given = encode_strings(queries, [candidates[i] for i in by_length])
    signatures = sign_strings(given)
    buckets = np.searchsorted(signatures.lengths, np.arange(signatures.lengths[-1] + 2))
    index = _Index(given, signatures, by_length, buckets)
    asked_signatures = sign_strings(asked)
    found = Nearest(np.empty(len(queries), np.int64), np.empty(len(queries), np.int64))

    def search(start: int) -> None:
        stop = min(start + CHUNK, len(queries))
        _search_chunk(asked, asked_signatures, index, start, stop, found.index, found.distance)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(search, range(0, len(queries), CHUNK)))
    return found


@compiled
def _search_chunk(
    asked: Strings,
    signatures: Signatures,
    index: _Index,
    start: int,
    stop: int,
    nearest: Places,
    distance: Places,
) -> None:
    """Fills `nearest` and `distance` for the queries `start..stop-1`."""
    longest_given = len(index.buckets) - 2
    table = new_pattern_table(longest(asked), asked.alphabet_size)
    bounds = np.empty(BLOCK, np.int64)
    for q in range(start, stop):
        query = asked.codes[asked.offsets[q] : asked.offsets[q + 1]]
        set_pattern(table, query)
        place, best = FAR, FAR
        for step in range(2 * max(len(query), longest_given) + 2):
            gap = (step + 1) // 2  # lengths in the order 0, -1, 1, -2, 2 ... away from the query's
            length = len(query) + (gap if step % 2 == 0 else -gap)
            if gap > best:
                break
            if 0 <= length <= longest_given:
                place, best = _search_bucket(table, signatures, q, index, length, bounds, place, best)
        nearest[q], distance[q] = place, best
        clear_pattern(table, query)


@compiled
def _search_bucket(
    table: Words,
    signatures: Signatures,
    query: int,
    index: _Index,
    length: int,
    bounds: Places,
    best_place: int,
    best: int,
) -> tuple[int, int]:
    """Place and distance of the nearest string so far, after the candidates of one length."""
    given = index.strings
    for first in range(index.buckets[length], index.buckets[length + 1], BLOCK):
        last = min(first + BLOCK, index.buckets[length + 1])
        bound_distances(signatures, query, index.signatures, first, last, bounds)
        for c in range(first, last):
            if bounds[c - first] > best:
                continue
            place = index.places[c]
            cutoff = best if place < best_place else best - 1
            if bounds[c - first] > cutoff:
                continue
            text = given.codes[given.offsets[c] : given.offsets[c + 1]]
            found = distance_to_pattern(table, signatures.lengths[query], text, cutoff)
            if found <= cutoff:
                best_place, best = place, found
    return best_place, best
