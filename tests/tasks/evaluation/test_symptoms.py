"""Symptoms of written text, each by texts that have it and texts that don't."""

import pytest

from tasks.evaluation.symptoms import Customs, find_symptoms, learn_customs

CODE = "def add(left, right):\n    total = left + right\n    return total\n"
CUSTOMS = learn_customs([CODE, "the quick brown fox jumps over the lazy dog"])


def test_customs_are_words_and_share_of_white_space() -> None:
    assert learn_customs(["a bc", "x1 _y"]) == Customs(frozenset({"bc", "x1", "_y"}), 2 / 9)
    assert learn_customs([]) == Customs(frozenset(), 0.0)


def test_a_loop_repeats_nearly_all_of_its_runs() -> None:
    pieces = "the quick brown fox " * 10
    runs = 40 - 3
    assert find_symptoms("", pieces, CUSTOMS).repetition == pytest.approx((runs - 4) / runs)
    assert find_symptoms("", CODE, CUSTOMS).repetition == 0


def test_words_that_the_domain_lacks_are_broken_and_those_of_the_prompt_are_not() -> None:
    assert find_symptoms("", " left + rigth + total + lefft ", CUSTOMS).broken_words == 0.5
    assert find_symptoms("rigth lefft", " left + rigth + total + lefft ", CUSTOMS).broken_words == 0


def test_a_word_that_a_limit_cut_is_not_judged() -> None:
    assert find_symptoms("", "ght + left + tot", CUSTOMS).broken_words == 0


@pytest.mark.parametrize(
    "number", ["12", "3.14", "1,234,567.8", "1e-9", "0xFF", "2.1.0", "1980s", "21st", "5kg", "1,2,3"]
)
def test_numbers_of_any_notation_are_whole(number: str) -> None:
    assert find_symptoms("", f" {number} ", CUSTOMS).broken_numbers == 0


@pytest.mark.parametrize("number", ["12a3b4", "1" * 30, "12..3..4", "3_x.4,,"])
def test_numbers_of_no_notation_are_broken(number: str) -> None:
    assert find_symptoms("", f" {number} ", CUSTOMS).broken_numbers == 1


def test_lost_and_doubled_spaces_are_a_distance_from_the_domain() -> None:
    glued, spread = "leftrighttotal", "l e f t r i g h t"
    assert find_symptoms("", glued, CUSTOMS).formatting == pytest.approx(CUSTOMS.whitespace)
    assert find_symptoms("", spread, CUSTOMS).formatting == pytest.approx(8 / 17 - CUSTOMS.whitespace)


def test_bytes_that_are_no_text_are_garbled() -> None:
    assert find_symptoms("", "ab\N{REPLACEMENT CHARACTER}\x07", CUSTOMS).garbled == 0.5
    assert find_symptoms("", "a\tb\n漢字\r\n", CUSTOMS).garbled == 0


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_a_text_without_a_visible_character_is_empty_and_nothing_else(text: str) -> None:
    found = find_symptoms("prompt", text, CUSTOMS)
    assert found.empty == 1
    assert found.repetition == found.broken_words == found.formatting == 0
