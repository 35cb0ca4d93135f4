"""Levenshtein distance of short strings: exact, and a handful of instructions per character.

Myers' bit-parallel algorithm (G. Myers 1999; several words per string after H. Hyyrö 2003) keeps a whole column of the
dynamic programming in the bits of a word: a pattern is written into a table of bits once, then measured against many
texts. The unit is the code point.

Kernels are compiled by numba on first use and read from its cache on disk from then on. They release the interpreter's
lock and write only to what they are given or make themselves, so threads may run them side by side.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusion_core.compilation import compiled

Codes = NDArray[np.int32]
Places = NDArray[np.int64]
Words = NDArray[np.uint64]

WORD_BITS = 64


class Strings(NamedTuple):
    """Strings as numbers, one after the other (a named tuple, which kernels can take).

    codes: int32 `[characters]`, each in `0..alphabet_size-1`; equal for equal characters of strings encoded together.
    offsets: int64 `[strings + 1]`; string `i` is `codes[offsets[i]:offsets[i+1]]`.
    alphabet_size: number of different characters, at least 1.
    """

    codes: Codes
    offsets: Places
    alphabet_size: int


class Signatures(NamedTuple):
    """What characters each string holds, as bits: enough to tell quickly that two strings are far apart.

    bits: uint64 `[3, strings]`. Word 0: the 64 most frequent characters. Word 1: those of them that occur twice or
        more. Word 2: all others, which share its bits.
    excess: int64 `[strings]`, characters that set no bit of their own. lengths: int64 `[strings]`.
    """

    bits: Words
    excess: Places
    lengths: Places


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


def paired_distances(queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.int64]:
    """The edit distance of each query to the text in its place, `[queries]`.

    Raises:
        ValueError: not as many texts as queries.
    """
    if len(queries) != len(texts):
        raise ValueError(f"expected a text per query, found {len(texts)} for {len(queries)}; pass pairs")
    return _measure_pairs(*encode_strings(queries, texts))


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
                if (rises >> last) & one:
                    score += 1
                elif (falls >> last) & one:
                    score -= 1
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


@compiled
def _measure_pairs(queries: Strings, texts: Strings) -> Places:
    found = np.empty(len(queries.offsets) - 1, np.int64)
    table = new_pattern_table(longest(queries), queries.alphabet_size)
    for i in range(len(found)):
        query = queries.codes[queries.offsets[i] : queries.offsets[i + 1]]
        text = texts.codes[texts.offsets[i] : texts.offsets[i + 1]]
        set_pattern(table, query)
        found[i] = distance_to_pattern(table, len(query), text, len(query) + len(text))
        clear_pattern(table, query)
    return found


@compiled
def sign_strings(strings: Strings) -> Signatures:
    """The signature of each string."""
    count = len(strings.offsets) - 1
    bits, excess = np.zeros((3, count), np.uint64), np.zeros(count, np.int64)
    for i in range(count):
        for place in range(strings.offsets[i], strings.offsets[i + 1]):
            code = strings.codes[place]
            bit = np.uint64(1) << np.uint64(code % WORD_BITS)
            word = 0 if code < WORD_BITS else 2
            if word == 0 and bits[0, i] & bit:
                word = 1
            if bits[word, i] & bit:
                excess[i] += 1
            bits[word, i] |= bit
    return Signatures(bits, excess, strings.offsets[1:] - strings.offsets[:-1])


@compiled
def bound_distances(ours: Signatures, i: int, theirs: Signatures, start: int, stop: int, bounds: Places) -> None:
    """Writes lower bounds of the edit distances of our string `i` to their strings `start..stop-1` into `bounds`.

    A distance is at least the longer length less the number of shared characters, repeats counted; two strings share
    at most as many characters as they share bits, plus the lesser of their excesses. Vector instructions do the work.
    """
    first, second, third = ours.bits[0, i], ours.bits[1, i], ours.bits[2, i]
    firsts, seconds, thirds = theirs.bits[0, start:stop], theirs.bits[1, start:stop], theirs.bits[2, start:stop]
    excess, lengths = theirs.excess[start:stop], theirs.lengths[start:stop]
    our_excess, our_length = ours.excess[i], ours.lengths[i]
    for c in range(len(firsts)):
        shared = _count_bits(first & firsts[c]) + _count_bits(second & seconds[c]) + _count_bits(third & thirds[c])
        bounds[c] = max(our_length, lengths[c]) - np.int64(shared) - min(our_excess, excess[c])


@compiled
def _count_bits(word: np.uint64) -> np.uint64:
    """Number of set bits; LLVM knows the pattern and makes one instruction of it."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)
