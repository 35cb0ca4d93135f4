"""Every source id goes where the target's own tokenization begins, or nowhere."""

import json

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer

from fusion_core.vocab_mapping import BytePiece, ExactMatch, VocabMapping
from fusion_core.vocabulary import Vocabulary, read_vocabulary, without_prefix_space

PAIRS = [
    ("exact_byte_level", "exact_metaspace"),
    ("exact_metaspace", "exact_byte_level"),
    ("exact_byte_level_prefix", "exact_prepend"),
    ("exact_metaspace_bare", "exact_byte_level"),
    ("unigram", "exact_metaspace"),
]


def vocabulary(*surfaces, **roles):
    return Vocabulary(surfaces, roles, False, False)


def characters(target):
    """An `encode` that cuts text into single characters that the target has, others being its id 0."""
    return lambda texts: [[target.id_of_surface.get(c.encode(), 0) for c in text] for text in texts]


def map_pair(tiny, source, target, mapping=BytePiece()):
    return mapping(tiny[source].vocabulary, tiny[target].vocabulary, tiny[target].encode_middle)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_token_goes_to_the_first_token_of_its_text(tiny, source, target):
    found = map_pair(tiny, source, target).ids.tolist()
    checked = 0
    for token, surface in enumerate(tiny[source].vocabulary.surfaces):
        text = (surface or b"").decode(errors="ignore")
        if surface and text.encode() == surface:
            assert found[token] == tiny[target].encode_middle([text])[0][0]
            checked += 1
    assert checked > 100


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_piece_of_a_character_goes_to_the_longest_token_it_begins_with(tiny, source, target):
    found = map_pair(tiny, source, target).ids.tolist()
    surfaces = tiny[target].vocabulary.surfaces
    for token, surface in enumerate(tiny[source].vocabulary.surfaces):
        if surface and surface.decode(errors="ignore").encode() != surface:
            longest = max(len(s) for s in surfaces if s and surface.startswith(s))
            assert surfaces[found[token]] == surface[:longest]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_what_a_token_maps_to_begins_its_bytes(tiny, source, target):
    found = map_pair(tiny, source, target)
    assert found.target_size == tiny[target].vocabulary.size
    for surface, token in zip(tiny[source].vocabulary.surfaces, found.ids.tolist(), strict=True):
        if surface:
            assert surface.startswith(tiny[target].vocabulary.surfaces[token])


@pytest.mark.parametrize("kind", ["exact_byte_level", "exact_metaspace", "exact_prepend", "word_piece"])
def test_a_vocabulary_maps_onto_itself(tiny, kind):
    found = map_pair(tiny, kind, kind).ids.tolist()
    vocabulary = tiny[kind].vocabulary
    moved = [i for i, t in enumerate(found) if vocabulary.surfaces[i] and i != t]
    assert all(tiny[kind].encode_middle([vocabulary.surfaces[i].decode(errors="replace")])[0] != [i] for i in moved)
    assert len(moved) < vocabulary.size / 2


@pytest.mark.parametrize("mapping", [BytePiece(), ExactMatch()])
def test_special_tokens_go_by_role(mapping):
    source = vocabulary(b"", b"", None, b"", b"x", bos=0, eos=1, unk=2, pad=3)
    target = vocabulary(b"x", b"", b"", bos=1, eos=2)
    assert mapping(source, target, characters(target)).ids.tolist() == [-1, 2, -1, -1, 0]


@pytest.mark.parametrize("mapping", [BytePiece(), ExactMatch()])
def test_an_id_that_begins_and_ends_texts_goes_to_the_end_token(mapping):
    source, target = vocabulary(b"", bos=0, eos=0, pad=0, unk=0), vocabulary(b"", b"", bos=0, eos=1)
    assert mapping(source, target, characters(target)).ids.tolist() == [1]


@pytest.mark.parametrize("mapping", [BytePiece(), ExactMatch()])
def test_without_an_end_token_in_the_target_it_goes_nowhere(mapping):
    source, target = vocabulary(b"", None, eos=0), vocabulary(b"a")
    assert mapping(source, target, characters(target)).ids.tolist() == [-1, -1]


def test_bytes_that_the_target_lacks_go_nowhere():
    source, target = vocabulary(b"\xff", "é".encode(), b"ab"), vocabulary(None, b"a", unk=0)
    assert BytePiece()(source, target, characters(target)).ids.tolist() == [-1, -1, 1]


def test_a_token_follows_the_target_that_changes_its_text():
    source, target = vocabulary(b"A"), vocabulary(None, b"a")
    assert BytePiece()(source, target, lambda texts: [[1] for _ in texts]).ids.tolist() == [1]


def test_the_tokenization_counts_even_against_an_equal_token():
    source, target = vocabulary(b"ab"), vocabulary(b"ab", b"a", b"b")
    assert BytePiece()(source, target, characters(target)).ids.tolist() == [1]


def test_exact_match_is_equality_of_bytes(tiny):
    found = map_pair(tiny, "exact_byte_level", "exact_metaspace", ExactMatch()).ids.tolist()
    surfaces = tiny["exact_metaspace"].vocabulary.surfaces
    for surface, token in zip(tiny["exact_byte_level"].vocabulary.surfaces, found, strict=True):
        equal = [i for i, s in enumerate(surfaces) if surface and s == surface]
        if surface:
            assert token == (equal[-1] if equal else -1)


def test_of_byte_fallback_and_ordinary_piece_the_ordinary_one_is_named():
    assert ExactMatch()(vocabulary(b"A"), vocabulary(b"A", b"B", b"A")).ids.tolist() == [2]


@pytest.mark.parametrize("mapping", [BytePiece(), ExactMatch()])
def test_empty_vocabularies_map(mapping):
    assert mapping(vocabulary(), vocabulary(), characters(vocabulary())).ids.tolist() == []
    assert mapping(vocabulary(b"a"), vocabulary(), lambda texts: [[] for _ in texts]).ids.tolist() == [-1]


def test_an_encode_that_loses_texts_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        BytePiece()(vocabulary(b"a"), vocabulary(b"a"), lambda texts: [])


@pytest.mark.parametrize(("kind", "expected"), [("byte_piece", BytePiece()), ("exact", ExactMatch())])
def test_kind_chooses_the_mapping(kind, expected):
    adapter = TypeAdapter(VocabMapping)
    assert adapter.validate_python({"kind": kind}) == expected
    assert adapter.validate_python(expected.model_dump()) == expected
    with pytest.raises(ValidationError, match="kind"):
        adapter.validate_python({"kind": "nearest"})


@pytest.mark.parametrize("mapping", [BytePiece(), ExactMatch()])
def test_mapping_twice_gives_the_same(tiny, mapping):
    first = map_pair(tiny, "exact_metaspace", "exact_byte_level", mapping)
    again = map_pair(tiny, "exact_metaspace", "exact_byte_level", mapping)
    assert torch.equal(first.ids, again.ids)


def test_real_byte_equal_tokens_stay_equal_under_the_targets_tokenization(shared):
    source, target = (json.loads((shared / f"tokenizers/{n}/tokenizer.json").read_text()) for n in ("mpt", "llama-2"))
    middle = Tokenizer.from_str(json.dumps(without_prefix_space(target)))
    vocabularies = read_vocabulary(source, {"eos": 0}), read_vocabulary(target, {"bos": 1, "eos": 2})
    pieces = BytePiece()(*vocabularies, lambda texts: [e.ids for e in middle.encode_batch(list(texts))]).ids
    equal = ExactMatch()(*vocabularies).ids
    has_equal = equal >= 0
    assert int(has_equal.sum()) == 21844
    assert torch.equal(pieces[has_equal], equal[has_equal])
    assert int((pieces < 0).sum()) == 1
