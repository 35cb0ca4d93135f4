"""Every source id goes where the target's own tokenization begins, or nowhere."""

import json
from collections import Counter, defaultdict
from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer

from fusion_core.alignment import tally_pairs
from fusion_core.pair_counts import PairCounts, sum_counts
from fusion_core.vocab_mapping import BytePiece, ExactMatch, Statistics, VocabMapping
from fusion_core.vocabulary import Vocabulary, read_vocabulary, without_prefix_space

PAIRS = [
    ("exact_byte_level", "exact_metaspace"),
    ("exact_metaspace", "exact_byte_level"),
    ("exact_byte_level_prefix", "exact_prepend"),
    ("exact_metaspace_bare", "exact_byte_level"),
    ("unigram", "exact_metaspace"),
]
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "def add(a, b):\n    return a + b",
    "être ou ne pas être, señor",
]
MAPPINGS = [mapping() for mapping in get_args(get_args(VocabMapping)[0])]
NO_COUNTS = sum_counts([])


def vocabulary(*surfaces, **roles):
    return Vocabulary(surfaces, roles, False, False)


def characters(target):
    """An `encode` that cuts text into single characters that the target has, others being its id 0."""
    return lambda texts: [[target.id_of_surface.get(c.encode(), 0) for c in text] for text in texts]


def count_pairs(pairs):
    columns = torch.tensor([[*pair, count] for pair, count in pairs.items()], dtype=torch.int64).reshape(-1, 3)
    return PairCounts.of(*columns.unbind(1))


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
    with pytest.raises(ValueError, match="1 texts, but found 0"):
        BytePiece()(vocabulary(b"a"), vocabulary(b"a"), lambda texts: [])


@pytest.mark.parametrize(
    ("kind", "expected"), [("byte_piece", BytePiece()), ("exact", ExactMatch()), ("statistics", Statistics())]
)
def test_kind_chooses_the_mapping(kind, expected):
    adapter = TypeAdapter(VocabMapping)
    assert adapter.validate_python({"kind": kind}) == expected
    assert adapter.validate_python(expected.model_dump()) == expected
    with pytest.raises(ValidationError, match="kind"):
        adapter.validate_python({"kind": "nearest"})


@pytest.mark.parametrize("mapping", MAPPINGS, ids=lambda m: m.kind)
def test_every_mapping_covers_the_source_is_its_own_copy_and_keeps_roles(tiny, mapping):
    source, target = tiny["exact_metaspace"], tiny["exact_byte_level"]
    counts = tally_pairs(source.read(TEXTS)[0], target.read(TEXTS)[0])
    first, again = (mapping(source.vocabulary, target.vocabulary, target.encode_middle, counts) for _ in range(2))
    assert torch.equal(first.ids, again.ids)
    assert first.ids.dtype == torch.int64
    assert (len(first.ids), first.target_size) == (source.vocabulary.size, target.vocabulary.size)
    assert -1 <= int(first.ids.min()) <= int(first.ids.max()) < target.vocabulary.size
    assert first.ids[:3].tolist() == [-1, -1, 2]
    with_bytes = [surface for surface, token in zip(source.vocabulary.surfaces, first.ids, strict=True) if token >= 0]
    assert sum(map(bool, with_bytes)) > 100


@pytest.mark.parametrize("mapping", MAPPINGS, ids=lambda m: m.kind)
def test_every_mapping_says_whether_it_needs_counts_outside_its_fields(mapping):
    assert isinstance(type(mapping).needs_counts, bool)
    assert "needs_counts" not in mapping.model_dump()


@pytest.mark.parametrize("mapping", [m for m in MAPPINGS if not m.needs_counts], ids=lambda m: m.kind)
def test_a_mapping_that_needs_no_counts_looks_at_none(tiny, mapping):
    source, target = tiny["exact_metaspace"], tiny["exact_byte_level"]
    pair = (source.vocabulary, target.vocabulary, target.encode_middle)
    assert torch.equal(mapping(*pair, count_pairs({(300, 301): 9})).ids, mapping(*pair).ids)


@pytest.mark.parametrize("min_count", [1, 2, 4])
def test_statistics_follow_the_definition_by_loops(tiny, min_count):
    source, target = tiny["exact_byte_level"], tiny["exact_metaspace"]
    counts = tally_pairs(source.read(TEXTS)[0], target.read(TEXTS)[0])
    expected = map_pair(tiny, "exact_byte_level", "exact_metaspace").ids.tolist()
    seen = defaultdict(Counter)
    for ours, theirs, count in zip(*(vars(counts)[n].tolist() for n in vars(counts)), strict=True):
        seen[ours][theirs] += count
    for ours, places in seen.items():
        if sum(places.values()) >= min_count:
            expected[ours] = min(places, key=lambda token: (-places[token], token))
    mapping = Statistics(min_count=min_count)
    found = mapping(source.vocabulary, target.vocabulary, target.encode_middle, counts)
    assert found.ids.tolist() == expected


def test_a_token_that_mostly_goes_on_goes_to_what_the_target_makes_of_the_whole(tiny):
    source, target = tiny["exact_byte_level"], tiny["exact_metaspace"]
    counts = tally_pairs(source.read(TEXTS)[0], target.read(TEXTS)[0])
    pair = (source.vocabulary, target.vocabulary, target.encode_middle)
    alone, in_text = BytePiece()(*pair).ids, Statistics()(*pair, counts).ids
    moved = (alone != in_text).nonzero().squeeze(1).tolist()
    longer = [len(target.vocabulary.surfaces[in_text[t]]) > len(target.vocabulary.surfaces[alone[t]]) for t in moved]
    assert moved
    assert sum(longer) > len(moved) / 2


def test_statistics_take_the_most_seen_of_equals_the_lowest_and_fall_back_below_the_minimum():
    source, target = vocabulary(b"a", b"b", b"c", b"", eos=3), vocabulary(b"a", b"b", b"c", b"", b"bc", eos=3)
    counts = count_pairs({(0, 4): 1, (0, 2): 1, (1, 4): 3, (1, 1): 1, (2, 0): 1, (3, 0): 7, (2, 3): 7})
    found = Statistics(min_count=2)(source, target, characters(target), counts)
    assert found.ids.tolist() == [2, 4, 2, 3]


def test_without_counts_statistics_are_byte_pieces(tiny):
    found = Statistics()(
        tiny["unigram"].vocabulary, tiny["exact_metaspace"].vocabulary, tiny["exact_metaspace"].encode_middle, NO_COUNTS
    )
    assert torch.equal(found.ids, map_pair(tiny, "unigram", "exact_metaspace").ids)


def test_counts_of_another_vocabulary_are_refused():
    source = vocabulary(b"a")
    with pytest.raises(ValueError, match=r"ids of the source must be in 0\.\.0.*found 1 to 1"):
        Statistics()(source, source, characters(source), count_pairs({(1, 0): 1}))


def test_a_least_count_of_zero_is_refused():
    with pytest.raises(ValidationError, match="min_count"):
        Statistics(min_count=0)


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
