"""Pieces and shards: cut without loss, named by content."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.artifacts import CorpusRef, Runtime
from tasks.corpora.documents import Document, digest_of, shards_of, split_text


@given(st.text(), st.integers(min_value=16, max_value=200))
def test_pieces_joined_are_the_document_byte_for_byte(text: str, max_bytes: int) -> None:
    text = text.encode("utf-8", "ignore").decode()  # lone surrogates have no UTF-8
    pieces = split_text(text, max_bytes)
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= max_bytes for piece in pieces)


def test_a_character_is_never_cut() -> None:
    assert split_text("\N{GRINNING FACE}" * 9, 18) == [
        "\N{GRINNING FACE}" * 4,
        "\N{GRINNING FACE}" * 4,
        "\N{GRINNING FACE}",
    ]


def test_cuts_fall_behind_line_breaks_then_spaces_near_the_end_of_a_piece() -> None:
    assert split_text("aaaa bbbb cccc\ndd ee ff", 18) == ["aaaa bbbb cccc\n", "dd ee ff"]
    assert split_text("aaaaaaaaaaaaaa bbbbbbbbbb", 18) == ["aaaaaaaaaaaaaa ", "bbbbbbbbbb"]


def test_an_empty_text_gives_no_piece() -> None:
    assert split_text("", 16) == []


def test_a_digest_sees_every_field_of_every_piece() -> None:
    piece = Document("a", "text", "prose", final=True)
    others = [
        Document("b", "text", "prose", final=True),
        Document("a", "texts", "prose", final=True),
        Document("a", "text", "code", final=True),
        Document("a", "text", "prose", final=False),
    ]
    digests = {digest_of([piece]), digest_of([]), digest_of([piece, piece]), *(digest_of([other]) for other in others)}
    assert len(digests) == 7


def test_a_corpus_that_is_not_built_has_no_shards(tmp_path: Path) -> None:
    ref = CorpusRef(step="build_corpus", fingerprint="0" * 32)
    assert shards_of(ref, Runtime(root=str(tmp_path))) == []


@pytest.mark.parametrize("max_bytes", [16, 17, 100])
def test_cutting_is_the_same_every_time(max_bytes: int) -> None:
    text = "word " * 100 + "żółć " * 50
    assert split_text(text, max_bytes) == split_text(text, max_bytes)
