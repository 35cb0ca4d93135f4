"""What kind of text each byte belongs to: tokenizers that agree on prose may part on digits and indentation."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

KINDS = ("prose", "code", "numbers", "non-Latin", "whitespace")
"""The names of the numbers that `classify_bytes` gives, in order."""

_PROSE, _CODE, _NUMBERS, _NON_LATIN, _WHITESPACE = range(len(KINDS))
_CODE_SHARE = 0.06
"""Least share of a paragraph's visible bytes that are marks of code. English prose has about 0.005, Python 0.1."""

_MARKS = np.isin(np.arange(256), list(b"(){}[]<>=_;#\\*+&|^~@$/"))
_DIGITS = np.isin(np.arange(256), list(b"0123456789"))
_BREAKS = np.isin(np.arange(256), list(b"\n\r\t\v\f"))
_SPACES = _BREAKS | (np.arange(256) == 32)
# Of a character's first byte: Latin with accents up to U+02BF, and U+1E00-1EFF (E1 B8-BB); U+2000-2BFF (E2 80-AF) are
# punctuation, currencies, arrows and boxes of any script.
_NON_LATIN_LEADS = np.arange(256) >= 0xCB


def classify_bytes(texts: Sequence[bytes]) -> UInt8[Tensor, "bytes"]:
    """The kind of every byte of the texts, one text after the other, as a number into `KINDS`.

    whitespace: two or more blanks in a row, line breaks and tabs. numbers: digits 0 to 9. non-Latin: all bytes of a
    character of another script (accented Latin letters and general punctuation aren't). What is left is code in a
    paragraph (lines without a blank one between them, of one text) that is rich in brackets, operators and
    underscores, and prose elsewhere.
    """
    content = np.frombuffer(b"".join(texts), dtype=np.uint8)
    starts = np.cumsum([0, *map(len, texts)])[:-1]
    blank = _is_wide_blank(content, starts)
    kinds = np.where(_is_code(content, starts), _CODE, _PROSE).astype(np.uint8)
    kinds[_DIGITS[content]] = _NUMBERS
    kinds[_is_non_latin(content)] = _NON_LATIN
    kinds[blank] = _WHITESPACE
    return torch.from_numpy(kinds)


def _is_wide_blank(content: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Line breaks, tabs, and blanks with another blank beside them in the same text."""
    space = _SPACES[content]
    with_next = np.zeros(len(content), dtype=bool)
    with_next[:-1] = space[:-1] & space[1:]
    with_next[starts[(starts > 0) & (starts < len(content))] - 1] = False
    wide: NDArray[np.bool_] = _BREAKS[content] | with_next
    wide[1:] |= with_next[:-1]
    return wide


def _is_non_latin(content: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The bytes of characters outside Latin letters, ASCII and general punctuation."""
    leads = (content & 0xC0) != 0x80
    following = np.append(content, 0)[1:]
    foreign = _NON_LATIN_LEADS[content]
    foreign &= ~((content == 0xE2) & (following < 0xB0)) & ~((content == 0xE1) & (following >> 2 == 0xB8 >> 2))
    character = np.cumsum(leads) - 1
    is_foreign: NDArray[np.bool_] = foreign[np.flatnonzero(leads)][character] if len(content) else foreign
    return is_foreign


def _is_code(content: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The bytes of paragraphs that are rich in marks of code."""
    paragraph = np.cumsum(_begins_paragraph(content, starts))
    visible, marks = ~_SPACES[content], _MARKS[content]
    share = np.bincount(paragraph, marks) / np.maximum(np.bincount(paragraph, visible), 1)
    rich: NDArray[np.bool_] = (share >= _CODE_SHARE)[paragraph] if len(content) else visible
    return rich


def _begins_paragraph(content: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The first byte of each text, and the first visible one behind a blank line."""
    visible = np.flatnonzero(~_SPACES[content])
    lines = np.cumsum(content == 10)
    begins = np.zeros(len(content), dtype=bool)
    begins[visible[1:]] = np.diff(lines[visible]) > 1
    begins[starts[starts < len(content)]] = True
    return begins
