"""The nearest of many strings, for many strings: which token of a vocabulary differs least from a given one.

Candidates lie in buckets of equal length and are visited from the query's own length outwards. Before any distance is
computed, a candidate is ruled out by the characters that the two share: a distance is at least the longer length less
the number of shared characters, repeats counted. That number is bounded from above by a few bit operations.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fusion_core.edit_distance import (
    Places,
    Strings,
    Words,
    clear_pattern,
    compiled,
    distance_to_pattern,
    encode_strings,
    longest,
    new_pattern_table,
    set_pattern,
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
    inexact = np.flatnonzero(index < 0)
    if not candidates or not len(inexact):
        return Nearest(index, distance)
    unique = {queries[i]: 0 for i in inexact}
    unique = {text: place for place, text in enumerate(unique)}
    found = _search(list(unique), candidates)
    places = [unique[queries[i]] for i in inexact]
    index[inexact], distance[inexact] = found.index[places], found.distance[places]
    return Nearest(index, distance)


class _Index(NamedTuple):
    """Candidates in order of length, then place.

    places: of each in the caller's sequence. buckets: those of `n` characters are `buckets[n]:buckets[n+1]`.
    signatures, excess: see `_sign`.
    """

    strings: Strings
    places: Places
    buckets: Places
    signatures: Words
    excess: Places


def _search(queries: Sequence[str], candidates: Sequence[str]) -> Nearest:
    """`find_nearest` by distances alone."""
    by_length = np.argsort([len(c) for c in candidates], kind="stable")
    asked, given = encode_strings(queries, [candidates[i] for i in by_length])
    lengths = np.diff(given.offsets)
    buckets = np.searchsorted(lengths, np.arange(lengths[-1] + 2))
    index = _Index(given, by_length, buckets, *_sign(given))
    signatures, excess = _sign(asked)
    found = Nearest(np.empty(len(queries), np.int64), np.empty(len(queries), np.int64))

    def search(start: int) -> None:
        stop = min(start + CHUNK, len(queries))
        _search_chunk(asked, signatures, excess, index, start, stop, found.index, found.distance)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(search, range(0, len(queries), CHUNK)))
    return found


@compiled
def _sign(strings: Strings) -> tuple[Words, Places]:
    """What characters each string holds, as bits `[3, strings]`, and how many of its characters have set no bit.

    Word 0: the 64 most frequent characters. Word 1: those of them that occur twice or more. Word 2: all others, which
    share its bits. Two strings share at most as many characters as they share bits, plus the lesser excess of the two.
    """
    count = len(strings.offsets) - 1
    signatures, excess = np.zeros((3, count), np.uint64), np.zeros(count, np.int64)
    for i in range(count):
        for place in range(strings.offsets[i], strings.offsets[i + 1]):
            code = strings.codes[place]
            bit = np.uint64(1) << np.uint64(code % 64)
            word = 0 if code < 64 else 2
            if code < 64 and signatures[0, i] & bit:
                word = 1
            if signatures[word, i] & bit:
                excess[i] += 1
            signatures[word, i] |= bit
    return signatures, excess


@compiled
def _search_chunk(
    asked: Strings,
    signatures: Words,
    excess: Places,
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
                signature = signatures[:, q]
                place, best = _search_bucket(
                    table, len(query), signature, excess[q], index, length, bounds, place, best
                )
        nearest[q], distance[q] = place, best
        clear_pattern(table, query)


@compiled
def _search_bucket(
    table: Words,
    query_length: int,
    signature: Words,
    excess: int,
    index: _Index,
    length: int,
    bounds: Places,
    best_place: int,
    best: int,
) -> tuple[int, int]:
    """Place and distance of the nearest string so far, after the candidates of one length."""
    given, longer = index.strings, max(query_length, length)
    for first in range(index.buckets[length], index.buckets[length + 1], BLOCK):
        last = min(first + BLOCK, index.buckets[length + 1])
        _bound(signature, excess, index.signatures[:, first:last], index.excess[first:last], longer, bounds)
        for c in range(first, last):
            if bounds[c - first] > best:
                continue
            place = index.places[c]
            cutoff = best if place < best_place else best - 1
            if bounds[c - first] > cutoff:
                continue
            text = given.codes[given.offsets[c] : given.offsets[c + 1]]
            found = distance_to_pattern(table, query_length, text, cutoff)
            if found <= cutoff:
                best_place, best = place, found
    return best_place, best


@compiled
def _bound(signature: Words, excess: int, others: Words, others_excess: Places, longer: int, bounds: Places) -> None:
    """A lower bound of the distance to each of `others` into `bounds`, `longer` being the length of the longer one."""
    first, second, third = signature[0], signature[1], signature[2]
    firsts, seconds, thirds = others[0], others[1], others[2]
    for c in range(len(firsts)):
        bits = _count_bits(first & firsts[c]) + _count_bits(second & seconds[c]) + _count_bits(third & thirds[c])
        bounds[c] = longer - np.int64(bits) - min(excess, others_excess[c])


@compiled
def _count_bits(word: np.uint64) -> np.uint64:
    """Number of set bits; LLVM knows the pattern and makes one instruction of it."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)
