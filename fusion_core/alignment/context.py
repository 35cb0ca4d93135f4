"""Which target token comes next if a text goes on in a given way.

The target's tokenizer decides, in context: the bytes since the last place where it surely cuts, followed by the
continuation, are tokenized. Where the row's boundary survives, the token after it is the one; where it doesn't, the
target would never have stood here with that continuation.

A place is surely cut when no token of the target holds the two bytes on either side of it next to each other. Most
continuations begin at such a place (a space after a letter), and then the context doesn't matter. What is left is
tokenized once per different (context, continuation) of a shard.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from fusion_core.alignment.continuations import NO_READ, Continuations
from fusion_core.alignment.pair import Pair
from fusion_core.types import Tokens
from fusion_core.vocab_mapping import Encode, decode_text, first_pieces
from fusion_core.vocabulary import Vocabulary

LEFT_OUT = -2
NOTHING = -1
MOST_TOKENS = 16
"""How many tokens back a context begins at the latest. Further back than this a continuation hardly ever reaches."""


def find_targets(found: Continuations, source: Tokens, target: Tokens, pair: Pair) -> Int[Tensor, "entries"]:
    """The target id that each continuation counts for; -1: none, `LEFT_OUT` (-2): its boundary wouldn't survive.

    Without `pair.vocab_map.in_context` the target's earlier bytes aren't looked at, and nothing is left out. A
    continuation that ends inside a character counts for the longest target token that it begins with.

    Raises:
        ValueError: something has to be tokenized, and the pair has no `encode`.
    """
    device = found.row.device
    targets = pair.vocab_map.ids.to(device)[found.token]
    if not (pair.vocab_map.in_context or len(found.reads.first) or bool((found.skip > 0).any())):
        return targets
    surfaces, joints = pair.source_bytes.to(device), pair.target_joints.to(device)
    run, read_texts = _intern(source.ids, found.reads.first, found.reads.length, found.reads.skip, pair.source)
    has_read, has_piece = found.read != NO_READ, surfaces.lengths[found.token] > found.skip
    read = _pick(run, found.read, has_read)
    first_of_piece = surfaces.byte(found.token, found.skip)
    first_of_read, last_of_read = _edges(read_texts, device)
    # what follows a place that is surely cut changes nothing before it
    joined = joints[_pick(last_of_read, read, has_read).clamp(min=0) * 256 + first_of_piece]
    piece = (surfaces.starts[found.token] + found.skip).where(has_piece & (joined | ~has_read), NOTHING)
    first = _pick(first_of_read, read, has_read).where(has_read, first_of_piece)
    context, context_texts = _contexts(found.row, first, has_read | has_piece, target, pair)

    places = ((context != NOTHING) | has_read | (has_piece & (found.skip > 0))).nonzero().squeeze(1)
    group, one = _number(context[places], read[places], piece[places])
    one = places[one]
    pieces = _pieces(found.token[one].tolist(), found.skip[one].tolist(), (piece[one] != NOTHING).tolist(), pair.source)
    before = [context_texts[c] if c != NOTHING else b"" for c in context[one].tolist()]
    after = [(read_texts[r] if r != NOTHING else b"") + p for r, p in zip(read[one].tolist(), pieces, strict=True)]
    targets[places] = torch.from_numpy(_next_tokens(before, after, pair)).to(device)[group]
    return targets


def _contexts(
    row: Tensor, first_byte: Tensor, has_bytes: Tensor, target: Tokens, pair: Pair
) -> tuple[Int[Tensor, "entries"], list[bytes]]:
    """The number of each entry's context, -1 where it doesn't matter, and the contexts' bytes."""
    context = torch.full_like(row, NOTHING)
    if not pair.vocab_map.in_context:
        return context, []
    surfaces, joints = pair.target_bytes.to(row.device), pair.target_joints.to(row.device)
    length = surfaces.lengths[target.ids]
    last_byte = surfaces.byte(target.ids, length - 1)
    matters = has_bytes & (length[row] > 0) & joints[last_byte[row] * 256 + first_byte]
    rows, row_of_entry = torch.unique(row[matters], return_inverse=True)
    begin = _begin_contexts(target, length, last_byte, pair)[rows]
    number, texts = _intern(target.ids, begin, rows - begin + 1, torch.zeros_like(rows), pair.target)
    context[matters] = number[row_of_entry]
    return context, texts


def _begin_contexts(target: Tokens, length: Tensor, last_byte: Tensor, pair: Pair) -> Int[Tensor, "target_tokens"]:
    """The token that each row's context begins with: the last one that the target surely cuts in front of."""
    index = torch.arange(len(target.ids), device=target.ids.device)
    first_byte = pair.target_bytes.to(index.device).byte(target.ids, 0)
    no_bytes = length == 0
    is_cut = no_bytes | no_bytes.roll(1) | ~pair.target_joints.to(index.device)[last_byte.roll(1) * 256 + first_byte]
    begins_character = no_bytes | ((first_byte & 0xC0) != 0x80)
    is_cut &= begins_character
    is_cut[target.doc_offsets[:-1][target.doc_offsets.diff() > 0]] = True
    surely = index.where(is_cut, 0).cummax(0).values
    likely = index.where(begins_character, 0).cummax(0).values
    return torch.maximum(surely, likely[(index - MOST_TOKENS + 1).clamp(min=0)])


def _intern(
    ids: Tensor, first: Tensor, length: Tensor, skip: Tensor, vocabulary: Vocabulary
) -> tuple[Int[Tensor, "runs"], list[bytes]]:
    """A number for each run of tokens, equal for equal runs, and the bytes of each number without the first `skip`."""
    number = torch.zeros_like(first)
    one: list[Tensor] = []
    count = 0
    for tokens in torch.unique(length).tolist():
        runs = (length == tokens).nonzero().squeeze(1)
        columns = [ids[first[runs] + place] for place in range(tokens)]
        of_run, one_of_each = _number(skip[runs], *columns)
        number[runs] = of_run + count
        count += len(one_of_each)
        one.append(runs[one_of_each])
    if not one:
        return number, []
    chosen = torch.cat(one)
    tokens_of = ids.tolist()
    spans = zip(first[chosen].tolist(), length[chosen].tolist(), skip[chosen].tolist(), strict=True)
    texts = [b"".join(vocabulary.surfaces[t] or b"" for t in tokens_of[f : f + n])[s:] for f, n, s in spans]
    return number, texts


def _number(*columns: Tensor) -> tuple[Int[Tensor, "n"], Int[Tensor, "groups"]]:
    """A number per place, equal where all columns are, and for each number one place that has it. Columns are >= -1."""
    key, range_of_key = torch.zeros_like(columns[0]), 1
    for column in columns:
        stride = int(column.max()) + 2 if len(column) else 1
        if range_of_key * stride > 2**62:  # the columns so far take too many bits: number them first
            values, key = torch.unique(key, return_inverse=True)
            range_of_key = len(values)
        key, range_of_key = key * stride + column + 1, range_of_key * stride
    values, key = torch.unique(key, return_inverse=True)
    one = torch.zeros_like(values)
    one[key] = torch.arange(len(key), device=key.device)
    return key, one


def _pick(values: Tensor, index: Tensor, where: Tensor) -> Tensor:
    """`values[index]` where wanted, -1 elsewhere; `values` may be empty if nothing is wanted."""
    padded = torch.cat([values, values.new_full((1,), NOTHING)])
    return padded[index.where(where, len(values))]


def _edges(texts: Sequence[bytes], device: torch.device) -> tuple[Int[Tensor, "texts"], Int[Tensor, "texts"]]:
    """First and last byte of each text."""
    first, last = ([text[place] for text in texts] for place in (0, -1))
    return torch.tensor(first, dtype=torch.int64, device=device), torch.tensor(last, dtype=torch.int64, device=device)


def _pieces(tokens: Sequence[int], skips: Sequence[int], wanted: Sequence[bool], source: Vocabulary) -> list[bytes]:
    return [
        (source.surfaces[token] or b"")[skip:] if is_wanted else b""
        for token, skip, is_wanted in zip(tokens, skips, wanted, strict=True)
    ]


def _next_tokens(before: Sequence[bytes], after: Sequence[bytes], pair: Pair) -> NDArray[np.int64]:
    """For each text, the target token that follows `before` in the tokenization of both; see `find_targets`."""
    result = np.full(len(before), LEFT_OUT, dtype=np.int64)
    if not before:
        return result
    if pair.encode is None:
        raise ValueError(
            f"expected an encode to tokenize {len(before)} texts with, but the pair has none; make the pair with the "
            "target's encode"
        )
    number: dict[bytes, int] = {}  # of each different text: many are asked about at more than one place
    asked = [number.setdefault(b + a, len(number)) for b, a in zip(before, after, strict=True)]
    text_of_question = np.array(asked, dtype=np.int64)
    text_of_token, ids = _encode(list(number), pair.encode)
    widths = pair.target.surface_lengths.numpy()[ids]
    spelled = _spelled(list(number), text_of_token, ids, widths, pair.target)
    ends = np.cumsum(widths.clip(min=0))
    of_text = np.searchsorted(text_of_token, text_of_token)  # the first token of each token's text
    start = ends - widths - (ends - widths)[of_text]
    counts = (widths > 0) & spelled[text_of_token]
    place = np.fromiter(map(len, before), dtype=np.int64, count=len(before))
    stride = 1 + max(map(len, number))
    tokens, questions = text_of_token[counts] * stride + start[counts], text_of_question * stride + place
    found = np.searchsorted(tokens, questions).clip(max=len(tokens) - 1)
    if len(tokens):
        follows = tokens[found] == questions
        result[follows] = ids[counts][found[follows]]
    others = np.flatnonzero(~spelled[text_of_question]).tolist()
    result[others] = first_pieces([after[i] for i in others], pair.target, pair.encode)
    return result


def _encode(texts: Sequence[bytes], encode: Encode) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The tokens of all texts, each with the number of its text; none of a text that ends inside a character."""
    strings = [decode_text(text) for text in texts]
    whole = np.array([i for i, string in enumerate(strings) if string is not None], dtype=np.int64)
    encoded = encode([string for string in strings if string is not None])
    counts = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    return whole.repeat(counts), np.fromiter(chain.from_iterable(encoded), dtype=np.int64, count=counts.sum())


def _spelled(
    texts: Sequence[bytes],
    text_of_token: NDArray[np.int64],
    ids: NDArray[np.int64],
    widths: NDArray[np.int64],
    target: Vocabulary,
) -> NDArray[np.bool_]:
    """Which texts are, byte by byte, the surfaces of their tokens."""  # fmt: skip
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    found = np.bincount(text_of_token, weights=widths, minlength=len(texts)).astype(np.int64)
    spelled: NDArray[np.bool_] = found == lengths
    spelled[text_of_token[widths < 0]] = False
    if target.normalizes:
        keep = spelled[text_of_token]
        joined = target.join_surfaces(torch.from_numpy(ids[keep])).tobytes()
        ends = np.cumsum(lengths * spelled)
        for i in np.flatnonzero(spelled).tolist():
            spelled[i] = joined[ends[i] - lengths[i] : ends[i]] == texts[i]
    return spelled
