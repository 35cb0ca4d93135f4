"""What is wrong with a text that a model wrote: shares from 0 to 1, the higher the worse, of text alone.

None of them says that a text is good. They are for comparing one model's texts with another's.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_PIECE = re.compile(r"\w+|[^\w\s]")
_WORD = re.compile(r"[^\W\d]\w+")
_NUMBER = re.compile(r"(?<!\w)\d[\w.,]*")
_WELL_FORMED = re.compile(
    r"(\d{1,12}|\d{1,3}(,\d{3})+)?(\.\d{1,12})*([eE][+-]?\d{1,3})?[.,]?"  # 12, 1,234,567.8, 1e9, 3.8.1 and "12."
    r"|0[xX][0-9a-fA-F]{1,16}|0[bB][01]{1,64}|0[oO][0-7]{1,22}"
    r"|\d{1,12}(st|nd|rd|th|s|[a-zA-Z]{1,3})[.,]?"  # ordinals, decades and units
    r"|\d{1,12}(,\d{1,12})+,?"  # a list without spaces
)
_RUN = 4  # pieces


@dataclass(frozen=True)
class Symptoms:
    """The measures of one text.

    repetition: of its runs of four pieces (words, signs), those that it had written before.
    broken_words: of its words of two characters or more, those that the domain's text never has (identifiers too).
    broken_numbers: of its numbers, those that no notation writes (12.3.ab, thirty digits in a row).
    formatting: how far its share of white space is from the domain's.
    garbled: of its characters, control characters and bytes that are no UTF-8.
    empty: 1 for a text without a visible character.
    """

    repetition: float
    broken_words: float
    broken_numbers: float
    formatting: float
    garbled: float
    empty: float


@dataclass(frozen=True)
class Customs:
    """What a domain's text is like: the words that it has, and its share of white space."""

    words: frozenset[str]
    whitespace: float


def learn_customs(texts: Iterable[str]) -> Customs:
    """The customs of a domain's texts; of no text, no words and no white space."""
    words: set[str] = set()
    characters = blanks = 0
    for text in texts:
        words.update(_WORD.findall(text))
        characters += len(text)
        blanks += _blanks(text)
    return Customs(frozenset(words), blanks / max(characters, 1))


def find_symptoms(prompt: str, text: str, customs: Customs) -> Symptoms:
    """The symptoms of a text that continues a prompt. An empty text has none but being empty.

    The first and the last word aren't judged: the prompt or the limit of tokens may have cut them.
    """
    if not text.strip():
        return Symptoms(0.0, 0.0, 0.0, 0.0, 0.0, empty=1.0)
    pieces = _PIECE.findall(text)
    runs = Counter(tuple(pieces[i : i + _RUN]) for i in range(len(pieces) - _RUN + 1))
    inner = [m[0] for m in _WORD.finditer(text) if m.start() > 0 and m.end() < len(text)]
    numbers = [m[0] for m in _NUMBER.finditer(text) if m.start() > 0 and m.end() < len(text)]
    known = customs.words | set(_WORD.findall(prompt))
    garbled = sum(
        c == "\N{REPLACEMENT CHARACTER}" or (unicodedata.category(c) == "Cc" and c not in "\t\n\r") for c in text
    )
    return Symptoms(
        repetition=_share(sum(count - 1 for count in runs.values()), sum(runs.values())),
        broken_words=_share(sum(word not in known for word in inner), len(inner)),
        broken_numbers=_share(sum(_WELL_FORMED.fullmatch(number) is None for number in numbers), len(numbers)),
        formatting=abs(_blanks(text) / len(text) - customs.whitespace),
        garbled=garbled / len(text),
        empty=0.0,
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _blanks(text: str) -> int:
    return sum(map(str.isspace, text))
