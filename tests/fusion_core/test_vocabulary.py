"""Surfaces spell the text, or the vocabulary says that they may not; boundaries are proven or absent."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_core.types import NO_BOUNDARY
from fusion_core.vocabulary import Vocabulary, read_vocabulary, token_boundaries

KINDS = [
    "exact_byte_level",
    "exact_byte_level_prefix",
    "byte_level_prefix_runs",
    "exact_tiktoken",
    "exact_metaspace",
    "exact_metaspace_bare",
    "exact_prepend",
    "byte_level_nfc",
    "unigram",
    "unigram_nfkc",
    "word_piece",
]
AWKWARD = [
    *["日本語", "漢字かな", "한국어", "👩‍👩‍👧", "🇩🇪", "👍🏽", "e\u0301", "a\u0308\u0323", "\u0301", "\u200d", "\ufeff"],
    *["    ", "\u00a0", "\u3000", "\t\t", " \t ", "\r\n", "\r\n\r\n", "\n\n\n", "\r", "\x85", "\u2028"],
    *["\x00", "\x07", "\x1b[0m", "\x7f", "<s>", "</s>", "<unk>", "<0x0A>", "<|endoftext|>", "[CLS]", "##ing", "Ġ", "Ċ"],
    *["don't", "1234567", "ﬁ", "Å", "the dog"],
]
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="▁")
TEXTS = (
    st.text(CHARACTERS, max_size=40)
    | st.text("ab éé\n ,(日ﬁÅ", max_size=20)
    | st.lists(st.sampled_from(AWKWARD) | st.text(CHARACTERS, max_size=3), max_size=10).map("".join)
)


def define_boundaries(vocabulary, ids, text):
    """Boundaries of one document that starts with a begin token, by loops; None where nothing is proven."""
    joined = b"".join(vocabulary.surfaces[i] or b"" for i in ids)
    shift = int(joined != text and vocabulary.adds_prefix_space and joined.startswith(b" "))
    read, result, trusted = 0, [], True
    for position, token in enumerate(ids):
        surface = vocabulary.surfaces[token]
        trusted = trusted and surface is not None
        read += len(surface or b"")
        end = max(read - shift, 0)
        good = trusted and text[:end] == joined[shift : shift + end] and end <= len(text)
        is_end = token == vocabulary.roles["eos"] and position > 0
        result.append(end if good and not is_end else NO_BOUNDARY)
    return [e if e not in result[i + 1 :] else NO_BOUNDARY for i, e in enumerate(result)]


def simple_vocabulary(adds_prefix_space=False):
    surfaces = (None, b"", b"", b"ab", b"a", b" ", b"\xc3", b"\xa9", b" a", None)
    return Vocabulary(surfaces, {"unk": 0, "bos": 1, "eos": 2}, adds_prefix_space, False)


def boundaries_of(vocabulary, ids, *texts, doc_offsets=None):
    offsets = torch.tensor(doc_offsets or [0, len(ids)])
    return token_boundaries(vocabulary, torch.tensor(ids, dtype=torch.int64), offsets, texts)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_surfaces_spell_the_text_or_the_vocabulary_says_it_may_change(tiny, kind, text):
    tokens, found = tiny[kind].read([text])
    vocabulary = tiny[kind].vocabulary
    if found.differs_at:
        # a Unigram model may hold "<s>" as a piece like any other, and so read it in a text
        unspelled = any(not vocabulary.surfaces[i] for i in tokens.ids.tolist()[1:-1])
        assert vocabulary.normalizes or unspelled
        assert not (kind.startswith("exact"))
    else:
        joined = bytes(vocabulary.join_surfaces(tokens.ids))
        assert text.encode() in (joined, joined[1:] if vocabulary.adds_prefix_space else joined)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_boundaries_follow_the_definition_by_loops(tiny, kind, text):
    tokens, found = tiny[kind].read([text])
    if not found.differs_at or not tiny[kind].vocabulary.adds_prefix_space:
        expected = define_boundaries(tiny[kind].vocabulary, tokens.ids.tolist(), text.encode())
        assert found.boundaries.tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_spans_prove_nothing_that_surfaces_deny(tiny, kind, text):
    """Where both can prove a boundary of a token they name the same byte."""
    by_surface = tiny[kind].read([text])[1].boundaries
    by_span = tiny[kind].read([text], spans=True)[1].boundaries
    both = (by_surface != NO_BOUNDARY) & (by_span != NO_BOUNDARY)
    assert torch.equal(by_surface[both], by_span[both])


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_documents_of_a_shard_do_not_touch_each_other(tiny, texts):
    for kind in ("exact_prepend", "byte_level_nfc", "unigram"):
        together = tiny[kind].read(texts)[1].boundaries.tolist()
        alone = [b for text in texts for b in tiny[kind].read([text])[1].boundaries.tolist()]
        assert together == alone


def test_byte_pieces_and_markers_become_bytes(tiny):
    vocabulary = tiny["exact_metaspace"].vocabulary
    pieces = tiny["exact_metaspace"].json["model"]["vocab"]
    assert vocabulary.surfaces[pieces["<0x0A>"]] == b"\n"
    assert vocabulary.surfaces[pieces["<0xC3>"]] == b"\xc3"
    assert vocabulary.surfaces[pieces["▁the"]] == b" the"
    assert vocabulary.surfaces[:3] == (None, b"", b"")


def test_added_runs_of_spaces_are_read_and_shadow_equal_pieces(tiny):
    vocabulary = tiny["exact_byte_level"].vocabulary
    run = vocabulary.id_of_surface[b"    "]
    assert run >= vocabulary.size - 3
    assert run in tiny["exact_byte_level"].tokenizer.encode("a    b").ids


def test_word_pieces_start_with_a_space_unless_they_continue_or_punctuate(tiny):
    _tokens, found = tiny["word_piece"].read(["the dog sleeps, the dog."])
    assert found.differs_at == {}
    assert found.boundaries[1:3].tolist() == [3, 7]
    assert tiny["word_piece"].vocabulary.normalizes


@pytest.mark.parametrize("kind", KINDS)
def test_normalizing_is_seen(tiny, kind):
    normalizing = {"byte_level_prefix_runs", "byte_level_nfc", "unigram_nfkc", "word_piece"}
    assert tiny[kind].vocabulary.normalizes == (kind in normalizing)


@pytest.mark.parametrize("kind", KINDS)
def test_json_round_trip_is_exact(tiny, kind):
    vocabulary = tiny[kind].vocabulary
    text = vocabulary.to_json()
    assert Vocabulary.from_json(text) == vocabulary
    assert Vocabulary.from_json(text).to_json() == text


def test_unused_ids_have_no_bytes():
    tokenizer_json = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 3}, "merges": []},
        "added_tokens": [{"id": 5, "content": "<end>", "special": True, "lstrip": False, "rstrip": False}],
    }
    vocabulary = read_vocabulary(tokenizer_json, {"eos": 5})
    assert vocabulary.surfaces == (b"a", None, None, b"b", None, b"")
    assert vocabulary.surface_lengths.tolist() == [1, -1, -1, 1, -1, 0]


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ({"type": "WordLevel", "vocab": {}}, "WordLevel"),
        ({"type": "BPE", "vocab": {}, "end_of_word_suffix": "</w>"}, "suffix"),
    ],
)
def test_unreadable_kinds_are_refused_by_name(model, found):
    with pytest.raises(ValueError, match=found):
        read_vocabulary({"model": model}, {})


def test_a_role_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.1.*'eos': 2"):
        Vocabulary((b"a", b"b"), {"eos": 2}, False, False)


def test_begin_stands_at_zero_and_end_nowhere():
    assert boundaries_of(simple_vocabulary(), [1, 3, 4, 2], b"aba").boundaries.tolist() == [0, 2, 3, NO_BOUNDARY]


def test_begin_and_end_may_share_an_id():
    vocabulary = Vocabulary((b"", b"x"), {"bos": 0, "eos": 0}, False, False)
    assert boundaries_of(vocabulary, [0, 1, 0], b"x").boundaries.tolist() == [0, 1, NO_BOUNDARY]
    assert boundaries_of(vocabulary, [0, 0], b"").boundaries.tolist() == [0, NO_BOUNDARY]


def test_a_cut_character_has_a_boundary_inside():
    assert boundaries_of(simple_vocabulary(), [1, 6, 7], "é".encode()).boundaries.tolist() == [0, 1, 2]


def test_a_prefix_space_consumes_no_byte_and_takes_over_the_start():
    vocabulary = simple_vocabulary(adds_prefix_space=True)
    assert boundaries_of(vocabulary, [1, 8], b"a").boundaries.tolist() == [0, 1]
    assert boundaries_of(vocabulary, [1, 5, 4], b"a").boundaries.tolist() == [NO_BOUNDARY, 0, 1]


def test_a_text_that_starts_with_a_space_may_come_without_a_prefix():
    vocabulary = simple_vocabulary(adds_prefix_space=True)
    assert boundaries_of(vocabulary, [1, 8], b" a").boundaries.tolist() == [0, 2]
    assert boundaries_of(vocabulary, [1, 5, 8], b" a").boundaries.tolist() == [NO_BOUNDARY, 0, 2]


def test_where_a_prefix_space_may_be_the_texts_own_only_the_whole_text_proves_anything():
    vocabulary = simple_vocabulary(adds_prefix_space=True)
    assert boundaries_of(vocabulary, [1, 5], "\u00a0".encode()).boundaries.tolist() == [0, NO_BOUNDARY]
    found = boundaries_of(vocabulary, [1, 5, 5, 4, 3], b"  aXY")
    assert found.boundaries.tolist() == [0, NO_BOUNDARY, NO_BOUNDARY, NO_BOUNDARY, NO_BOUNDARY]
    assert found.differs_at == {0: 3}


def test_nothing_is_proven_behind_the_first_byte_that_differs():
    found = boundaries_of(simple_vocabulary(), [1, 4, 3, 4, 2], b"aaba")
    assert found.differs_at == {}
    found = boundaries_of(simple_vocabulary(), [1, 4, 4, 3, 2], b"aaXb")
    assert found.boundaries.tolist() == [0, 1, 2, NO_BOUNDARY, NO_BOUNDARY]
    assert found.differs_at == {0: 2}


def test_nothing_is_proven_behind_an_unknown_token():
    found = boundaries_of(simple_vocabulary(), [1, 4, 0, 4], b"a?a")
    assert found.boundaries.tolist() == [0, 1, NO_BOUNDARY, NO_BOUNDARY]
    assert found.differs_at == {0: 1}


@pytest.mark.parametrize(("text", "at"), [(b"ab", 1), (b"", 0)])
def test_surfaces_that_give_less_or_more_than_the_text_are_reported(text, at):
    assert boundaries_of(simple_vocabulary(), [1, 4], text).differs_at == {0: at}


def test_only_the_documents_that_differ_are_named():
    found = boundaries_of(simple_vocabulary(), [1, 4, 1, 4, 1, 3], b"a", b"x", b"ab", doc_offsets=[0, 2, 4, 6])
    assert found.boundaries.tolist() == [0, 1, 0, NO_BOUNDARY, 0, 2]
    assert found.differs_at == {1: 0}


def test_spans_give_boundaries_where_a_normalizer_changed_the_text(tiny):
    text = "the e\u0301te\u0301 dog"
    _tokens, by_surface = tiny["byte_level_nfc"].read([text])
    _, by_span = tiny["byte_level_nfc"].read([text], spans=True)
    assert by_surface.differs_at == by_span.differs_at == {0: 4}
    assert by_surface.boundaries.max() <= 4
    assert by_span.boundaries.max() == len(text.encode())
    inside_accents = {5, 6, 9, 10}
    assert not inside_accents & set(by_span.boundaries.tolist())


def test_spans_give_boundaries_around_an_unknown_character(tiny):
    text = "the ☃ dog"
    _, found = tiny["unigram"].read([text], spans=True)
    assert found.boundaries.max() == len(text.encode())
    assert found.differs_at == {0: 4}


def test_overlapping_or_gapping_spans_prove_nothing():
    vocabulary = simple_vocabulary()
    ids, offsets = torch.tensor([1, 4, 4, 4, 2]), torch.tensor([0, 5])

    def ends(*spans):
        given = torch.tensor([(0, 0), *spans, (0, 0)])
        return token_boundaries(vocabulary, ids, offsets, [b"xyz"], given).boundaries.tolist()[1:-1]

    assert ends((0, 1), (1, 2), (2, 3)) == [1, 2, 3]
    assert ends((0, 2), (1, 2), (2, 3)) == [NO_BOUNDARY, 2, 3]
    assert ends((0, 1), (2, 3), (2, 3)) == [NO_BOUNDARY, NO_BOUNDARY, 3]
    assert ends((0, 1), (1, 2), (1, 2)) == [1, NO_BOUNDARY, NO_BOUNDARY]


def test_an_empty_shard_has_no_boundaries():
    found = token_boundaries(simple_vocabulary(), torch.zeros(0, dtype=torch.int64), torch.tensor([0]), [])
    assert found.boundaries.tolist() == []
    assert found.differs_at == {}


def test_texts_and_documents_must_correspond():
    with pytest.raises(ValueError, match="2 texts for 1 documents"):
        boundaries_of(simple_vocabulary(), [1], b"", b"")


@pytest.mark.parametrize("bad", [-1, 10])
def test_ids_outside_the_vocabulary_are_refused(bad):
    with pytest.raises(ValueError, match=r"0\.\.9"):
        boundaries_of(simple_vocabulary(), [1, bad], b"a")


@pytest.mark.parametrize("name", ["llama-2", "mpt", "openllama-v1", "gpt-2"])
def test_real_vocabularies_spell_every_byte_they_can(shared, name):
    tokenizer_json = json.loads((shared / "tokenizers" / name / "tokenizer.json").read_text())
    vocabulary = read_vocabulary(tokenizer_json, {})
    assert b" the" in vocabulary.id_of_surface
    missing = {b for b in range(256) if bytes([b]) not in vocabulary.id_of_surface}
    never_in_utf8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
    assert missing <= never_in_utf8
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary
