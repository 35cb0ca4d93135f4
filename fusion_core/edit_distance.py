"""Levenshtein distance of short strings: exact, and a handful of instructions per character.

Myers' bit-parallel algorithm (G. Myers 1999; several words per string after H. Hyyrö 2003) keeps a whole column of the
dynamic programming in the bits of a word: a pattern is written into a table of bits once, then measured against many
texts. The unit is the code point.

Kernels are compiled by numba on first use and read from its cache on disk from then on. They release the interpreter's
lock and write only to what they are given or make themselves, so threads may run them side by side.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple, ParamSpec, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int32]
Places = NDArray[np.int64]
Words = NDArray[np.uint64]

WORD_BITS = 64

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function as machine code that runs without the interpreter's lock, cached on disk."""
    plain = inspect.unwrap(function)  # a checker of annotations may have wrapped it, which numba can't compile
    return cast(Callable[P, R], numba.njit(nogil=True, cache=True)(plain))


class Strings(NamedTuple):
    """Strings as numbers, one after the other (a named tuple, which kernels can take).

    codes: int32 `[characters]`, each in `0..alphabet_size-1`; equal for equal characters of strings encoded together.
    offsets: int64 `[strings + 1]`; string `i` is `codes[offsets[i]:offsets[i+1]]`.
    alphabet_size: number of different characters, at least 1.
    """

    codes: Codes
    offsets: Places
    alphabet_size: int


def encode_strings(*groups: Sequence[str]) -> tuple[Strings, ...]:
    """The groups as numbers over one common alphabet, in which code 0 is the most frequent character."""
    points = [np.frombuffer("".join(g).encode("utf-32-le", "surrogatepass"), dtype="<u4") for g in groups]
    counts = np.bincount(np.concatenate(points).astype(np.int64), minlength=1)
    by_frequency = np.argsort(-counts, kind="stable")[: max(np.count_nonzero(counts), 1)]
    code_of_point = np.zeros(len(counts), dtype=np.int32)
    code_of_point[by_frequency] = np.arange(len(by_frequency))
    offsets = [np.cumsum([0, *map(len, g)], dtype=np.int64) for g in groups]
    return tuple(Strings(code_of_point[p], o, len(by_frequency)) for p, o in zip(points, offsets, strict=True))


def edit_distances(queries: Sequence[str], candidates: Sequence[str]) -> NDArray[np.int32]:
    """The edit distance of each query to each candidate, `[queries, candidates]`.

    That is the least number of characters to insert, delete or replace that turns one into the other.
    """
    return _measure_all(*encode_strings(queries, candidates))


@compiled
def longest(strings: Strings) -> int:
    """Characters of the longest string; 0 if there are none."""
    most = 0
    for i in range(len(strings.offsets) - 1):
        most = max(most, strings.offsets[i + 1] - strings.offsets[i])
    return most


@compiled
def new_pattern_table(longest: int, alphabet_size: int) -> Words:
    """An empty table `[words, alphabet]` for patterns of up to `longest` characters."""
    return np.zeros((longest // WORD_BITS + 1, alphabet_size), np.uint64)


@compiled
def set_pattern(table: Words, pattern: Codes) -> None:
    """Marks in an empty table the places where `pattern` holds each character."""
    for place in range(len(pattern)):
        table[place // WORD_BITS, pattern[place]] |= np.uint64(1) << np.uint64(place % WORD_BITS)


@compiled
def clear_pattern(table: Words, pattern: Codes) -> None:
    """Empties the table that holds `pattern`; linear in the pattern, not in the table."""
    for place in range(len(pattern)):
        table[place // WORD_BITS, pattern[place]] = np.uint64(0)


@compiled
def distance_to_pattern(table: Words, length: int, text: Codes, cutoff: int) -> int:
    """Edit distance of the pattern of `length` characters in `table` to `text`; `cutoff + 1` where it is greater."""
    if length == 0:
        return min(len(text), cutoff + 1)
    if length <= WORD_BITS:
        return _distance_in_word(table[0], length, text, cutoff)
    return _distance_in_words(table, length, text, cutoff)


@compiled
def _distance_in_word(table: Words, length: int, text: Codes, cutoff: int) -> int:
    one = np.uint64(1)
    up, down = ~np.uint64(0), np.uint64(0)  # where the column rises or falls from one place to the next
    last = one << np.uint64(length - 1)
    score = length
    for j in range(len(text)):
        equal = table[text[j]]
        vertical = equal | down
        horizontal = (((equal & up) + up) ^ up) | equal
        rises = down | ~(horizontal | up)
        falls = up & horizontal
        if rises & last:
            score += 1
        elif falls & last:
            score -= 1
        if score - (len(text) - 1 - j) > cutoff:  # each character left can lower the score by one
            return cutoff + 1
        rises = (rises << one) | one
        up = (falls << one) | ~(vertical | rises)
        down = rises & vertical
    return min(score, cutoff + 1)


@compiled
def _distance_in_words(table: Words, length: int, text: Codes, cutoff: int) -> int:
    one, zero = np.uint64(1), np.uint64(0)
    words = (length + WORD_BITS - 1) // WORD_BITS
    ups, downs = np.full(words, ~zero), np.zeros(words, np.uint64)
    top, last = np.uint64(WORD_BITS - 1), np.uint64((length - 1) % WORD_BITS)
    score = length
    for j in range(len(text)):
        rise_in, fall_in = one, zero  # what the word before hands on; the first row rises by one per column
        for word in range(words):
            up, down, equal = ups[word], downs[word], table[word, text[j]]
            vertical = equal | down
            equal |= fall_in
            horizontal = (((equal & up) + up) ^ up) | equal
            rises = down | ~(horizontal | up)
            falls = up & horizontal
            if word == words - 1:
                score += np.int64((rises >> last) & one) - np.int64((falls >> last) & one)
            rise_out, fall_out = rises >> top, falls >> top
            rises = (rises << one) | rise_in
            falls = (falls << one) | fall_in
            ups[word] = falls | ~(vertical | rises)
            downs[word] = rises & vertical
            rise_in, fall_in = rise_out, fall_out
        if score - (len(text) - 1 - j) > cutoff:
            return cutoff + 1
    return min(score, cutoff + 1)


@compiled
def _measure_all(queries: Strings, candidates: Strings) -> NDArray[np.int32]:
    found = np.empty((len(queries.offsets) - 1, len(candidates.offsets) - 1), np.int32)
    table = new_pattern_table(longest(queries), queries.alphabet_size)
    for q in range(found.shape[0]):
        query = queries.codes[queries.offsets[q] : queries.offsets[q + 1]]
        set_pattern(table, query)
        for c in range(found.shape[1]):
            text = candidates.codes[candidates.offsets[c] : candidates.offsets[c + 1]]
            found[q, c] = distance_to_pattern(table, len(query), text, len(query) + len(text))
        clear_pattern(table, query)
    return found
