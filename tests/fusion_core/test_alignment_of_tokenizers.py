"""Tokenizers of different kinds, aligned from text to teacher rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_core.alignment import ByteBoundary, Pair, common_rows
from fusion_core.types import Scored, TokenDist
from fusion_core.vocab_mapping import BytePiece
from tests.fusion_core.test_vocabulary import TEXTS, define_boundaries

INF = math.inf


@pytest.mark.parametrize(
    ("source_kind", "target_kind"),
    [
        ("exact_byte_level", "exact_metaspace"),
        ("exact_tiktoken", "exact_prepend"),
        ("exact_metaspace_bare", "byte_level_nfc"),
        ("byte_level_nfc", "exact_tiktoken"),
    ],
)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, max_size=3))
def test_rows_of_two_tokenizers_meet_exactly_where_a_slow_reading_says(tiny, source_kind, target_kind, texts):
    (source, _), (target, _) = (tiny[kind].read(texts) for kind in (source_kind, target_kind))
    slow = []
    for kind, tokens in ((source_kind, source), (target_kind, target)):
        documents = zip(tokens.ids.split(tokens.doc_offsets.diff().tolist()), texts, strict=True)
        slow.append(
            [
                (doc, end)
                for doc, (ids, text) in enumerate(documents)
                for end in define_boundaries(tiny[kind].vocabulary, ids.tolist(), text.encode())
            ]
        )
    expected = [slow[0].index(place) if place[1] >= 0 and place in slow[0] else -1 for place in slow[1]]
    assert common_rows(source, target).tolist() == expected


@pytest.mark.parametrize(
    ("source_kind", "target_kind"),
    [("exact_byte_level", "exact_metaspace"), ("unigram", "byte_level_nfc"), ("word_piece", "exact_prepend")],
)
def test_real_kinds_of_tokenizers_meet_at_the_ends_of_words(tiny, source_kind, target_kind):
    texts = ["the dog sleeps, the fox jumps", "Größe être", ""]
    (source, _), (target, _) = (tiny[k].read(texts, spans=True) for k in (source_kind, target_kind))
    source_vocabulary, target_vocabulary = tiny[source_kind].vocabulary, tiny[target_kind].vocabulary
    vocab_map = BytePiece()(source_vocabulary, target_vocabulary, tiny[target_kind].encode_middle)
    pair = Pair(source_vocabulary, target_vocabulary, vocab_map, tiny[target_kind].encode_middle)
    rows = common_rows(source, target)
    met = {(d, b) for d, b, r in zip(target.doc_of_token, target.boundaries, rows, strict=True) if r >= 0}
    met = {(int(d), int(b)) for d, b in met}
    assert {(0, b) for b in (3, 7, 14, 29)} <= met
    # a model sure of the next token teaches the token that the target's own tokenization starts with
    labels = source.ids.roll(-1)
    rows_of_source = len(source.ids)
    sure = TokenDist(
        torch.arange(rows_of_source + 1),
        labels,
        *(torch.full((rows_of_source,), v) for v in (0.0, -INF, -INF)),
        source_vocabulary.size,
    )
    nll = torch.zeros(rows_of_source)
    dist = ByteBoundary()(Scored(source, sure, nll), target, pair).dist
    for row in dist.present.nonzero().flatten().tolist():
        taught = dist.ids[dist.row_offsets[row] : dist.row_offsets[row + 1]].tolist()
        expected = vocab_map.ids[labels[rows[row]]].item()
        assert taught == ([expected] if expected >= 0 else [])
