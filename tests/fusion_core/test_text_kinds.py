"""Kinds of text, byte by byte."""

import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion_core.text_kinds import KINDS, classify_bytes

MARKS = set("(){}[]<>=_;#\\*+&|^~@$/")
BLANKS = set(" \n\r\t\v\f")


def name_kinds(*texts: str) -> list[str]:
    return [KINDS[kind] for kind in classify_bytes([text.encode() for text in texts]).tolist()]


def is_foreign(character: str) -> bool:
    code = ord(character)
    return not (code < 0x2C0 or 0x1E00 <= code < 0x1F00 or 0x2000 <= code < 0x2C00)


def classify_by_loops(text: str) -> list[str]:
    """The definition, character by character."""
    paragraph_of, number, breaks = [], 0, -1
    for character in text:  # who owns blanks doesn't matter: alone between two words they go with the word before
        if character in BLANKS:
            breaks += character == "\n" and breaks >= 0
        else:
            number += breaks > 1
            breaks = 0
        paragraph_of += [number] * len(character.encode())
    data = text.encode()
    found: list[str] = []
    for number in paragraph_of:
        own = [byte for byte, of in zip(data, paragraph_of, strict=True) if of == number and chr(byte) not in BLANKS]
        rich = bool(own) and sum(chr(byte) in MARKS for byte in own) / len(own) >= 0.06
        found.append("code" if rich else "prose")
    place = 0
    for number, character in enumerate(text):
        size = len(character.encode())
        beside = text[max(0, number - 1) : number] + text[number + 1 : number + 2]
        if character in BLANKS and (character != " " or set(beside) & BLANKS):
            found[place : place + size] = ["whitespace"] * size
        elif character in "0123456789":
            found[place] = "numbers"
        elif is_foreign(character):
            found[place : place + size] = ["non-Latin"] * size
        place += size
    return found


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("The dog sleeps.", "prose"),
        ("Größe, être, señor: “quoted” — and Việt", "prose"),
        ("x = f(a, b)[i]", "code"),
        ("1234567890", "numbers"),
        ("Привет", "non-Latin"),
        ("日本語のテキスト", "non-Latin"),
        ("안녕", "non-Latin"),
        ("🙂", "non-Latin"),
        (" \n\t  \n", "whitespace"),
    ],
)
def test_every_kind_is_recognised_by_each_of_its_bytes(text, kind):
    assert [k for c, k in zip(text.encode(), name_kinds(text), strict=True) if c != 32 or kind == "whitespace"] == [
        kind
    ] * len(text.encode().replace(b" ", b"" if kind != "whitespace" else b" "))


def test_digits_and_runs_of_blanks_are_their_own_kind_inside_prose():
    assert name_kinds("a 1  b") == ["prose", "prose", "numbers", "whitespace", "whitespace", "prose"]


def test_a_blank_line_separates_code_from_prose():
    kinds = name_kinds("Plain words here.\n\nf(x) = {y: [z]}")
    assert (kinds[0], kinds[-1]) == ("prose", "code")
    assert set(name_kinds("Plain words here.\nf(x) = {y: [z]}")) == {"code", "whitespace"}


def test_texts_do_not_reach_into_each_other():
    texts = ["ends with one ", " begins with one", "", "f(x)={}", "words alone"]
    assert name_kinds(*texts) == [kind for text in texts for kind in name_kinds(text)]


def test_every_letter_of_a_script_is_latin_or_not_by_its_unicode_name():
    letters = [chr(c) for c in range(0x80, 0xFFFF) if unicodedata.category(chr(c)) in ("Ll", "Lu")]
    for letter in letters:
        name = unicodedata.name(letter)
        if name.startswith(("CYRILLIC", "GREEK", "ARMENIAN", "GEORGIAN")):
            assert set(name_kinds(letter)) == {"non-Latin"}, name
        elif name.startswith("LATIN") and (ord(letter) < 0x250 or 0x1E00 <= ord(letter) < 0x1F00):
            assert set(name_kinds(letter)) == {"prose"}, name


@given(st.text(alphabet=st.sampled_from("ab1 \n\t({é₃Жﬁ日🙂—ếʰ"), max_size=40))
def test_classification_agrees_with_its_definition(text):
    assert name_kinds(text) == classify_by_loops(text)


def test_nothing_has_no_kinds():
    assert classify_bytes([]).shape == classify_bytes([b"", b""]).shape == (0,)
    assert classify_bytes([]).dtype == torch.uint8
