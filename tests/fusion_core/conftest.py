"""Tiny tokenizers of every kind, trained in memory."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fusion_core.types import Tokens
from fusion_core.vocabulary import Boundaries, Vocabulary, read_vocabulary, token_boundaries, without_prefix_space

SPECIAL = ["<unk>", "<s>", "</s>"]
TRAINING_TEXT = [
    "The quick brown fox jumps over the lazy dog, and then the dog sleeps.",
    "def add(a, b):\n    return a + b  # the sum\n\n\nclass Dog:\n        pass",
    "Die Größe der Straße überraschte ihn; être ou ne pas être, señor.",
    "Привет, мир! Это короткий текст. 日本語のテキストも少し。",
    "0123456789 3.14159 2026-01-31 12:30 100% x**2",
]


@dataclass(frozen=True)
class TinyTokenizer:
    """A trained tokenizer as its `tokenizer.json`; id 1 begins a text and id 2 ends it."""

    json: dict[str, Any] = field(repr=False)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(json.dumps(self.json))
        tokenizer.encode_special_tokens = True  # what looks like one in a text is text
        return tokenizer

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return read_vocabulary(self.json, {"unk": 0, "bos": 1, "eos": 2})

    @cached_property
    def _middle(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(json.dumps(without_prefix_space(self.json)))
        tokenizer.encode_special_tokens = True
        return tokenizer

    def encode_middle(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._middle.encode_batch(list(texts), add_special_tokens=False)]

    def read(self, texts: Sequence[str], spans: bool = False) -> tuple[Tokens, Boundaries]:
        """The shard of `texts`, each begun and ended, and its boundaries."""
        ids: list[int] = []
        char_spans: list[tuple[int, int]] = []
        offsets = [0]
        for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False):
            ids += [1, *encoding.ids, 2]
            char_spans += [(0, 0), *encoding.offsets, (0, 0)]
            offsets.append(len(ids))
        tokens, doc_offsets = torch.tensor(ids, dtype=torch.int64), torch.tensor(offsets)
        given = torch.tensor(char_spans).reshape(-1, 2) if spans else None
        found = token_boundaries(self.vocabulary, tokens, doc_offsets, [t.encode() for t in texts], given)
        return Tokens(tokens, found.boundaries, doc_offsets), found


def train(tokenizer: Tokenizer, trainer: Any) -> TinyTokenizer:
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return TinyTokenizer(json.loads(tokenizer.to_str()))


def train_byte_level(
    vocab_size: int = 400, normalizer: Any = None, prefix: bool = False, runs: bool = True
) -> TinyTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    trained = train(tokenizer, trainer)
    if not runs:
        return trained
    with_runs = trained.tokenizer
    with_runs.add_tokens([AddedToken(" " * n, normalized=False) for n in (4, 3, 2)])
    return TinyTokenizer(json.loads(with_runs.to_str()))


def train_tiktoken() -> TinyTokenizer:
    """Cut by tiktoken's pattern for cl100k_base, then byte-level; whole words that are tokens need no merges."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    return train(tokenizer, trainer)


def train_marked_bpe(vocab_size: int = 480, metaspace: bool = True, prefix: str = "always") -> TinyTokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL, *byte_pieces], limit_alphabet=70, show_progress=False
    )
    trained = train(tokenizer, trainer)
    special = [token for token in trained.json["added_tokens"] if token["content"] in SPECIAL]
    return TinyTokenizer({**trained.json, "added_tokens": special})


def train_unigram(normalizer: Any = None) -> TinyTokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return train(tokenizer, trainer)


def train_word_piece() -> TinyTokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    return train(tokenizer, trainer)


@pytest.fixture(scope="session")
def tiny() -> dict[str, TinyTokenizer]:
    """One tokenizer per kind; the names starting with "exact" never change a text."""
    return {
        "exact_byte_level": train_byte_level(),
        "exact_byte_level_prefix": train_byte_level(prefix=True, runs=False),
        "byte_level_prefix_runs": train_byte_level(prefix=True),
        "exact_tiktoken": train_tiktoken(),
        "exact_metaspace": train_marked_bpe(),
        "exact_metaspace_bare": train_marked_bpe(prefix="never"),
        "exact_prepend": train_marked_bpe(metaspace=False),
        "byte_level_nfc": train_byte_level(normalizer=normalizers.NFC()),
        "unigram": train_unigram(),
        "unigram_nfkc": train_unigram(normalizers.NFKC()),
        "word_piece": train_word_piece(),
    }


@pytest.fixture(scope="session")
def shared() -> Iterator[Path]:
    """The folder of third-party vocabularies next to the checkout."""
    path = Path(__file__).parents[3] / "shared"
    if not path.is_dir():
        pytest.skip(f"no third-party vocabularies at {path}")
    return path
