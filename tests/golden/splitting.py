"""split_long_text*.json: long texts in pieces of at most a threshold of tokens."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_core.reference import split_long_text
from tests.golden.outcome import Outcome, Tally

FILES = re.compile(r"split_long_text.*\.json")


@dataclass(frozen=True)
class _Tokenizer:
    library: Any  # transformers' tokenizers have no common type

    def encode(self, text: str) -> list[int]:
        return list(self.library(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Any) -> str:
        return str(self.library.decode(ids, skip_special_tokens=True))


def check(path: Path) -> Outcome:
    tally = Tally()
    for case in json.loads(path.read_text(encoding="utf-8")):
        tokenizers = [load_tokenizer(name, path.parent) for name in case["tokenizers"]]
        for row in case["rows"]:
            pieces = split_long_text(row["text"], tokenizers, case["block_size"] - 48)
            counts = [len(tokenizer.encode(row["text"])) for tokenizer in tokenizers]
            piece_counts = [[len(tokenizer.encode(piece)) for tokenizer in tokenizers] for piece in pieces]
            found = (pieces, counts, piece_counts, "".join(pieces) == row["text"])
            expected = tuple(row[k] for k in ("pieces", "token_counts", "piece_token_counts", "joined_equals_text"))
            tally.add(found == expected)
    return tally.outcome()


def load_tokenizer(name: str, near: Path) -> _Tokenizer:
    """The tokenizer in `tokenizers_small/` beside the golden file, or in `tokenizers/` beside its folder."""
    from transformers import PreTrainedTokenizerFast

    places = [near / "tokenizers_small" / name, near.parent / "tokenizers" / name]
    for place in places:
        if (place / "tokenizer.json").is_file():
            return _Tokenizer(PreTrainedTokenizerFast.from_pretrained(place))
    raise FileNotFoundError(f"{name}: expected its tokenizer.json in {' or '.join(map(str, places))}, found none")
