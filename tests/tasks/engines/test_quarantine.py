"""Documents that can't be read are found by themselves and named."""

import json
from pathlib import Path
from typing import Any

import pytest

from fusion_core.types import NO_BOUNDARY
from tasks.corpora.documents import Document
from tasks.engines import Problem
from tasks.engines.encoding import Encoder
from tasks.engines.quarantine import check_share, encode_readable
from tasks.models.folders import load_tokenizer, vocabulary_of
from tests.conftest import ModelFactory


def _pieces(*texts: str) -> list[Document]:
    return [Document(id=f"id{number}", text=text, domain="") for number, text in enumerate(texts)]


def _tokenizer(tiny_neox: ModelFactory) -> Any:
    return load_tokenizer(tiny_neox())


def _encode(tokenizer: Any) -> Encoder:
    return Encoder("tiny", Path(), tokenizer, vocabulary_of(tokenizer), None)


def test_pieces_over_the_window_are_read_as_their_begin_token(tiny_neox: ModelFactory) -> None:
    tokenizer = _tokenizer(tiny_neox)
    pieces = _pieces("the dog", "the fox jumps over " * 40, "ab")
    encoded, problems = encode_readable(_encode(tokenizer), pieces, 32)
    assert list(problems) == [1]
    assert "the model's window is 32" in problems[1].text
    assert int(problems[1].way_out.split()[3]) < len(pieces[1].text)
    tokens = encoded.tokens
    lengths = tokens.doc_offsets.diff().tolist()
    assert lengths[1] == 1
    assert min(lengths[0], lengths[2]) > 1
    assert int(tokens.boundaries[tokens.doc_offsets[1]]) == NO_BOUNDARY
    unbounded, none = encode_readable(_encode(tokenizer), pieces, None)
    assert none == {}
    assert int(unbounded.tokens.doc_offsets.diff()[1]) > 32


def test_a_piece_that_the_tokenizer_fails_on_is_the_only_one_lost(tiny_neox: ModelFactory) -> None:
    from tokenizers import Tokenizer

    tokenizer = _tokenizer(tiny_neox)
    saved = json.loads(tokenizer.backend_tokenizer.to_str())
    saved["model"]["vocab"]["<gone>"] = saved["model"]["vocab"].pop("Q")
    saved["model"]["unk_token"] = "<none>"  # a name that the vocabulary doesn't have: what is unknown is an error
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(saved))
    pieces = _pieces("the dog", "a Question", "ab")
    encoded, problems = encode_readable(_encode(tokenizer), pieces, 32)
    assert list(problems) == [1]
    assert problems[1].text.startswith("the tokenizer fails on it")
    assert encoded.tokens.doc_offsets.diff()[1] == 1


def test_too_many_are_refused_by_id_with_the_way_out() -> None:
    problems = {1: Problem("9 tokens, the model's window is 8", "set corpus.max_bytes to 30 or less")}
    check_share("shard 7", _pieces("a", "b"), problems, 0.5)
    expected = (
        r"^shard 7: expected at most 10% documents that can't be used, found 1 of 2 \(id1: 9 tokens, the model's "
        r"window is 8\); set corpus.max_bytes to 30 or less, or raise max_quarantined$"
    )
    with pytest.raises(ValueError, match=expected):
        check_share("shard 7", _pieces("a", "b"), problems, 0.1)
