"""The original's cutting of long texts."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
    """What cutting needs of a tokenizer; without special tokens on both ways."""

    def encode(self, text: str) -> Sequence[int]:
        """The ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids."""


def split_long_text(text: str, tokenizers: Sequence[Tokenizer], threshold: int) -> list[str]:
    """The text in pieces of at most `threshold` tokens of the tokenizer that needs most, the first of equals.

    A piece is the decoding of a run of its tokens: spaces at the cuts can get lost, characters cut in two are
    destroyed, and a piece may have more tokens than the threshold when it is encoded again. A text that no tokenizer
    needs more than `threshold` tokens for is left alone, the empty one too.
    Raises ValueError without tokenizers, or for a threshold below 1.
    """
    if not tokenizers or threshold < 1:
        raise ValueError(
            f"expected at least 1 tokenizer and a threshold of at least 1, found {len(tokenizers)} and {threshold};"
            " the original takes three, and its block size less 48"
        )
    encoded = [tokenizer.encode(text) for tokenizer in tokenizers]
    longest = max(range(len(encoded)), key=lambda i: len(encoded[i]))
    ids = encoded[longest]
    if len(ids) <= threshold:
        return [text]
    return [tokenizers[longest].decode(ids[i : i + threshold]) for i in range(0, len(ids), threshold)]
