"""Where the tokens of a text end, in bytes, and only where that can be proven."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from fusion_core.types import NO_BOUNDARY
from fusion_core.vocabulary.surfaces import Vocabulary

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Boundaries:
    """Where each token ends, and the documents that the vocabulary's surfaces don't spell.

    boundaries: int64, as in `Tokens.boundaries`.
    differs_at: document -> first byte of it that the joined surfaces don't give (its length, if they give more).
    """

    boundaries: Int[Tensor, "tokens"]
    differs_at: Mapping[int, int]


def token_boundaries(
    vocabulary: Vocabulary,
    ids: Int[Tensor, "tokens"],
    doc_offsets: Int[Tensor, "docs_plus_one"],
    texts: Sequence[bytes],
    char_spans: Int[Tensor, "tokens 2"] | None = None,
) -> Boundaries:
    """The boundaries of a shard's tokens, each of them proven.

    A document whose joined surfaces equal its bytes (after one prefix space, if the tokenizer adds one) has all its
    boundaries. Any other document has them up to the first byte that differs or the first token without bytes of its
    own, and none but 0 where a prefix space can't be told from the text's own first one; with `char_spans` it has
    instead those that its tokens' spans prove. Everything else is `NO_BOUNDARY`, never shifted. The rules for special
    tokens are those of `Tokens.boundaries`.

    Args:
        ids, doc_offsets: as in `Tokens`, special tokens included, padding not.
        texts: UTF-8 bytes of each document.
        char_spans: start and end of each token in its document, in characters, as the tokenizer reports them.

    Raises:
        ValueError: another number of texts than documents, offsets that don't cut the ids, an id outside the
            vocabulary, or spans that aren't of these tokens and texts.
    """
    _check(vocabulary, ids, doc_offsets, texts)
    if char_spans is not None and char_spans.shape != (len(ids), 2):
        raise ValueError(
            f"expected a start and an end for each of {len(ids)} tokens, found spans {tuple(char_spans.shape)}; pass "
            "(0, 0) for special tokens"
        )
    lengths = vocabulary.surface_lengths[ids.cpu()].numpy()
    ends_in_shard = np.cumsum(lengths.clip(min=0))
    starts_in_shard = np.concatenate([[0], ends_in_shard])
    joined = vocabulary.join_surfaces(ids)
    offsets = doc_offsets.cpu().numpy()
    ends = np.full(len(lengths), NO_BOUNDARY, dtype=np.int64)
    differs_at = {}
    for doc, text in enumerate(texts):
        first, last = offsets[doc], offsets[doc + 1]
        start, stop = starts_in_shard[first], starts_in_shard[last]
        read = ends_in_shard[first:last] - start
        ends[first:last], proven = _follow(
            joined[start:stop], read, lengths[first:last] < 0, text, vocabulary.adds_prefix_space
        )
        if proven is None:
            continue
        differs_at[doc] = proven
        if char_spans is not None:
            spans = char_spans[first:last].cpu().numpy()
            ends[first:last] = _prove_spans(vocabulary, ids[first:last], spans, text)
    return Boundaries(_keep_last(vocabulary, ids, ends, offsets), differs_at)


def _check(vocabulary: Vocabulary, ids: Tensor, doc_offsets: Tensor, texts: Sequence[bytes]) -> None:
    docs = doc_offsets.shape[0] - 1
    if len(texts) != docs:
        raise ValueError(f"expected one text per document, found {len(texts)} texts for {docs} documents; pass both")
    if int(doc_offsets[0]) != 0 or int(doc_offsets[-1]) != len(ids) or bool((doc_offsets.diff() < 0).any()):
        raise ValueError(
            f"doc_offsets must rise from 0 to the number of ids, {len(ids)}, but found {int(doc_offsets[0])}.."
            f"{int(doc_offsets[-1])}; pass where each document begins, and the end of the last"
        )
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary.size:
        raise ValueError(
            f"ids must lie in 0..{vocabulary.size - 1}, but found {int(ids.min())}..{int(ids.max())}; "
            "read the vocabulary of the tokenizer that made them"
        )


def _follow(
    joined: Bytes, read: Places, bytes_unknown: NDArray[np.bool_], text: bytes, adds_prefix_space: bool
) -> tuple[Places, int | None]:
    """Where each token of one document ends, and the first byte that differs (None if none does).

    joined: the document's surfaces. read: bytes of them read after each token.
    """
    hidden = np.logical_or.accumulate(bytes_unknown)
    trusted = joined if not hidden.any() else joined[: read[np.argmax(hidden)]]
    expected = np.frombuffer(text, dtype=np.uint8)
    has_prefix = adds_prefix_space and joined[:1].tobytes() == b" "
    # some tokenizers add no second space to a text that begins with one: the reading that goes further is right
    equal, shift = max((_common_prefix(trusted[shift:], expected), shift) for shift in ((0, 1) if has_prefix else (0,)))
    ends = np.maximum(read - shift, 0)
    ends[(ends > equal) | hidden] = NO_BOUNDARY
    complete = equal == len(expected) == len(joined) - shift and not hidden.any()
    if not complete and has_prefix and (equal == 0 or text.startswith(b" ")):
        ends[read > 0] = NO_BOUNDARY  # whether its first space is the prefix or of the text is anybody's guess
    return ends, None if complete else equal


def _common_prefix(a: Bytes, b: Bytes) -> int:
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if different.size else shorter


def _prove_spans(vocabulary: Vocabulary, ids: Tensor, char_spans: Places, text: bytes) -> Places:
    """Where each token of one document ends by its span, `NO_BOUNDARY` where the spans prove nothing.

    A boundary is proven when no token before it ends behind it, no token after it starts before it, and the next one
    starts right there. The one gap allowed is a space that the next token's surface begins with: tokenizers that trim
    spans, and WordPiece, leave it out. Tokens of one cut character share its span, so only the last has a boundary.
    """
    content = np.frombuffer(text, dtype=np.uint8)
    byte_of_char = np.append(np.flatnonzero((content & 0xC0) != 0x80), len(text))
    lengths = vocabulary.surface_lengths[ids.cpu()].numpy()
    ends = np.full(len(lengths), NO_BOUNDARY, dtype=np.int64)
    has_text = lengths != 0
    if not has_text.any():
        return ends if text else np.zeros_like(ends)
    if char_spans.min() < 0 or char_spans.max() >= len(byte_of_char):
        raise ValueError(
            f"spans must lie in the text of {len(byte_of_char) - 1} characters, but found {char_spans.min()}.."
            f"{char_spans.max()}; pass the spans of the same texts, in characters"
        )
    starts, stops = byte_of_char[char_spans[has_text]].T
    if starts.min() == 0:
        ends[: np.argmax(has_text)] = 0
    reached = np.maximum.accumulate(stops)
    to_come = np.append(np.minimum.accumulate(starts[::-1])[::-1][1:], len(text))
    gap_is_next_space = np.zeros(len(starts), dtype=bool)
    next_begins_with_space = (lengths[has_text] > 0) & (_first_bytes(vocabulary, ids[torch.from_numpy(has_text)]) == 32)
    gap_is_next_space[:-1] = (to_come - stops == 1)[:-1] & next_begins_with_space[1:]
    gap_is_next_space[:-1] &= np.append(content, 0)[stops[:-1]] == 32
    proven = (reached == stops) & ((to_come == stops) | gap_is_next_space)
    ends[has_text] = np.where(proven, stops, NO_BOUNDARY)
    return ends


def _first_bytes(vocabulary: Vocabulary, ids: Tensor) -> Places:
    """The first byte of each id's surface; of no meaning for ids without bytes."""
    lengths = vocabulary.surface_lengths[ids.cpu()].clamp(min=0).numpy()
    joined = np.append(vocabulary.join_surfaces(ids), 0)
    first: Places = joined[np.cumsum(lengths) - lengths].astype(np.int64)
    return first


def _keep_last(vocabulary: Vocabulary, ids: Tensor, ends: Places, offsets: Places) -> Int[Tensor, "tokens"]:
    """`ends` without those of end tokens, and of equal ones in a document only the last."""
    tokens = ids.cpu().numpy()
    is_first = np.zeros(len(ends), dtype=bool)
    is_first[offsets[:-1][offsets[:-1] < offsets[1:]]] = True
    ends[(tokens == vocabulary.roles.get("eos", -1)) & ~is_first] = NO_BOUNDARY
    proven = np.flatnonzero(ends != NO_BOUNDARY)
    doc = np.searchsorted(offsets, proven, side="right")
    repeated = (ends[proven][:-1] == ends[proven][1:]) & (doc[:-1] == doc[1:])
    ends[proven[:-1][repeated]] = NO_BOUNDARY
    return torch.from_numpy(ends).to(ids.device)
