"""Near duplicates and held-out text: against definitions by sets of words."""

import random

import numpy as np
import pytest

from tasks.corpora.overlap import Decontamination, ExactDuplicates, HeldOutText, NearDuplicates, SeenTexts, ngrams


def _words(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [f"w{draw.randrange(5000)}" for _ in range(count)]


def _by_definition(text: str, words: int) -> set[tuple[str, ...]]:
    found = text.lower().replace(",", " ").replace(".", " ").split()
    return {tuple(found[i : i + words]) for i in range(len(found) - words + 1)}


@pytest.mark.parametrize("words", [1, 3, 13])
def test_ngrams_are_as_many_as_distinct_runs_of_words_and_shared_alike(words: int) -> None:
    one, other = " ".join(_words(400, 0)), " ".join([*_words(400, 0)[100:200], *_words(50, 1)])
    assert len(ngrams(one, words)) == len(_by_definition(one, words))
    shared = len(np.intersect1d(ngrams(one, words), ngrams(other, words)))
    assert shared == len(_by_definition(one, words) & _by_definition(other, words))


def test_ngrams_see_neither_case_nor_punctuation_and_need_enough_words() -> None:
    assert ngrams("One, two. THREE", 3).tolist() == ngrams("one two three", 3).tolist()
    assert ngrams("one two three", 3).tolist() != ngrams("three two one", 3).tolist()
    assert len(ngrams("one two", 3)) == len(ngrams("", 1)) == 0


def test_hashes_are_the_same_in_every_process() -> None:
    assert ngrams("stable", 1).tolist() == [4870704333610814135]


def test_an_exact_duplicate_is_an_equal_text() -> None:
    seen = SeenTexts(ExactDuplicates())
    assert [seen.has(text) for text in ("a b", "a  b", "a b", "a B")] == [False, False, True, False]


@pytest.mark.parametrize(("changed", "is_near"), [(1, True), (4, True), (120, False)])
def test_a_near_duplicate_shares_most_of_its_ngrams(changed: int, is_near: bool) -> None:
    words = _words(1000, 0)
    edited = ["other" if i % (1000 // changed) == 0 else word for i, word in enumerate(words)]
    one, other = (_by_definition(" ".join(text), 5) for text in (words, edited))
    assert (len(one & other) / len(one | other) >= 0.8) == is_near
    seen = SeenTexts(NearDuplicates(similarity=0.8))
    assert not seen.has(" ".join(words))
    assert seen.has(" ".join(edited)) == is_near


def test_texts_of_few_words_are_duplicates_of_equal_ones_alone() -> None:
    seen = SeenTexts(NearDuplicates())
    assert [seen.has(text) for text in ("a b", "a b c", "a b", "")] == [False, False, True, False]


def test_held_out_text_is_found_by_the_share_of_ngrams_that_it_has() -> None:
    held_out, fresh = _words(40, 0), _words(60, 1)
    index = HeldOutText([" ".join(held_out)], Decontamination())
    assert index.overlap(" ".join(fresh)) == 0
    assert index.overlap(" ".join(held_out)) == 1
    mixed = " ".join([*fresh[:30], *held_out[:13], *fresh[30:]])
    assert index.overlap(mixed) == 1 / (73 - 12)
    assert index.contains(mixed)
    assert not index.contains(" ".join([*fresh[:30], *held_out[:12], *fresh[30:]]))
    assert not HeldOutText([" ".join(held_out)], Decontamination(max_overlap=0.1)).contains(mixed)


def test_no_held_out_text_contains_nothing() -> None:
    assert not HeldOutText([], Decontamination(ngram=1)).contains("anything")


SHORT = "What is the capital of France? Paris."


def test_a_held_out_text_of_few_words_is_found_as_a_whole() -> None:
    index = HeldOutText([SHORT, " ".join(_words(40, 0)), "?!"], Decontamination(max_overlap=0.9))
    assert index.without_ngrams == 2
    for copy in (SHORT, "what is the capital of france   paris"):
        assert index.overlap(copy) == 1
        assert index.contains(copy)
    for other in ("What is the capital of France?", f"Who asks? {SHORT}", "?!", "...", ""):
        assert index.overlap(other) == 0


@pytest.mark.parametrize(
    "text",
    [
        "敏捷的棕色狐狸跳过了那只懒惰的狗，然后回到森林里睡觉。",
        "素早い茶色の狐はのろまな犬を飛び越えて、森に帰りました。",
        "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ",
    ],
)
def test_where_no_spaces_part_words_each_character_is_one(text: str) -> None:
    index = HeldOutText([text], Decontamination())
    assert index.without_ngrams == 0
    assert index.contains(f"copied: {text[2:]}")
    assert not index.contains(text[:12])
    assert ngrams(text[:8], 8).tolist() == ngrams(" ".join(text[:8]), 8).tolist() != []


def test_words_between_characters_stay_whole() -> None:
    assert len(ngrams("用PyTorch训练2026年", 1)) == 6
    assert ngrams("用PyTorch训练", 4).tolist() == ngrams("用 pytorch 训 练", 4).tolist() != []
