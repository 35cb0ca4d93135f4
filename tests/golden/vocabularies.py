"""The tokens of the vocabularies that golden files name."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from fusion_core.vocabulary import Vocabulary, read_vocabulary

Pieces = tuple[str | None, ...]


def find_pieces(name: str, near: Path) -> Pieces | None:
    """The tokens of vocabulary `name` in order of id, or None if it isn't found.

    Looked for in the vocabulary files of the folder `near`, in its `tokenizers_small/`, and in `tokenizers/` beside it.
    """
    for path in sorted(near.glob("vocab_map_*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for side in ("base", "blending"):
            if content[side] == name and f"{side}_tokens" in content:
                return tuple(content[f"{side}_tokens"])
    for folder in (near / "tokenizers_small", near.parent / "tokenizers"):
        path = folder / name / "tokenizer.json"
        if path.is_file():
            return _read(path)
    return None


@cache
def _read(path: Path) -> Pieces:
    return read_vocabulary(json.loads(path.read_text(encoding="utf-8")), {}).pieces


def collect_pieces(pairs: Iterator[tuple[int, str]]) -> Pieces:
    """The tokens of which only some (id, token) are known."""
    known = dict(pairs)
    return tuple(known.get(token) for token in range(max(known, default=-1) + 1))


def make_vocabulary(pieces: Sequence[str | None], marker: str) -> Vocabulary:
    """A vocabulary for what compares strings: special tokens are strings like all others there."""
    surfaces = tuple(None if piece is None else piece.encode() for piece in pieces)
    no_roles: Mapping[str, int] = {}
    return Vocabulary(surfaces, no_roles, False, False, tuple(pieces), marker)
