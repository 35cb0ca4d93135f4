"""Where shards end: what a change of the corpus leaves as it is, and sizes."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpora.documents import Document, digest_of, text_id
from tasks.corpora.sharding import cut_by_content, cut_by_size


def _documents(count: int, seed: int = 0, length: int = 200) -> list[Document]:
    draw = random.Random(seed)
    texts = ["x" * draw.randrange(2, 2 * length) + str(draw.random()) for _ in range(count)]
    return [Document(text_id(text), text, "text") for text in texts]


def _digests(pieces: list[Document], shard_bytes: int = 4000) -> list[str]:
    return [digest_of(shard) for shard in cut_by_content(pieces, shard_bytes)]


@pytest.mark.parametrize("place", [0, 500, 999, 1000])
def test_a_document_more_leaves_all_but_a_few_shards_as_they_are(place: int) -> None:
    before = _documents(1000)
    after = [*before[:place], *_documents(1, seed=1), *before[place:]]
    new = set(_digests(after)) - set(_digests(before))
    assert len(_digests(before)) > 40
    assert 1 <= len(new) <= 3


def test_documents_at_the_end_leave_all_shards_but_the_last_as_they_are() -> None:
    before = _documents(1000)
    assert _digests(before)[:-1] == _digests(before + _documents(500, seed=1))[: len(_digests(before)) - 1]


@pytest.mark.parametrize("length", [20, 200, 2000])
def test_shards_are_about_as_large_as_asked_for_however_long_documents_are(length: int) -> None:
    sizes = [sum(len(p.text) for p in shard) for shard in cut_by_content(_documents(3000, length=length), 8000)]
    assert 0.75 * 8000 < sum(sizes) / len(sizes) < 1.3 * 8000
    assert max(sizes) <= 16000
    assert all(size >= 4000 for size in sizes[:-1])


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=4), max_size=30),
    shard_bytes=st.integers(1, 200),
)
def test_joined_shards_are_the_corpus_and_none_is_larger_than_it_may_be(
    lengths: list[list[int]], shard_bytes: int
) -> None:
    pieces = [
        Document(text_id(f"{d}"), "a" * length, "text", final=i == len(parts) - 1)
        for d, parts in enumerate(lengths)
        for i, length in enumerate(parts)
    ]
    for cut, limit in ((cut_by_content, 2 * shard_bytes), (cut_by_size, shard_bytes)):
        shards = list(cut(pieces, shard_bytes))
        assert [piece for shard in shards for piece in shard] == pieces
        assert all(len(shard) == 1 or sum(len(p.text) for p in shard) <= limit for shard in shards)
        assert all(shards)
