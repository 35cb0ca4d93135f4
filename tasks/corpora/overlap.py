"""Texts that share words with others: near duplicates within a corpus, and what it has of held-out text.

Both compare n-grams of words, lower-cased and without punctuation, as 64-bit hashes that mean the same in every
process. In scripts that set no spaces between words, each character counts as one word.

Of conversations, near duplicates and held-out text are what user and assistant say: what the system says is shared by
many, and so are tools. Held-out text is looked for in all that anybody says and the definitions of tools do, and in the
exchange and the assistant's text by themselves.
"""

import functools
import hashlib
import re
from collections.abc import Iterable
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fusion_core.spec import Spec
from tasks.corpora.document_sources import Files, HubDataset

NGrams = NDArray[np.uint64]
# Thai, Lao, Myanmar, Khmer (their vowel signs, no letters to `\w`, too), kana, Han.
_SPACELESS = (
    r"\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ebd\u0ec0-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\u109a-\u109d\u1780-\u17d3"
    r"\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\uff66-\uff9d\U00020000-\U000323af"
)
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")
_ODD = np.uint64(0x9E3779B97F4A7C15)
_PERMUTATIONS = 128
_GRAMS_AT_ONCE = 8192  # 4 MB of permuted hashes


class ExactDuplicates(Spec):
    """Of equal texts the first stays."""

    kind: Literal["exact"] = "exact"


class NearDuplicates(Spec):
    """Of texts that are about the same the first stays: by MinHash (Broder 1997), needs the extra `corpora`."""

    kind: Literal["near"] = "near"
    similarity: float = Field(
        0.8,
        gt=0,
        lt=1,
        title="Similarity",
        description="Jaccard index of the texts' n-grams from which they are the same; estimated within about 0.04.",
    )
    ngram: int = Field(
        5,
        gt=0,
        title="Words per n-gram",
        description="That are compared; characters, where a script sets no spaces between words.",
    )


class Decontamination(Spec):
    """Which documents are left out because held-out text has parts of them."""

    ngram: int = Field(
        13,
        gt=0,
        title="Words per n-gram",
        description="So many words in a row that held-out text has too are no chance; characters, where a script sets "
        "no spaces between words. Held-out text of fewer is found where a document is nothing else.",
    )
    max_overlap: float = Field(
        0.0,
        ge=0,
        lt=1,
        title="Overlap at most",
        description="Share of a document's n-grams that held-out text may have; above it the document is left out.",
    )
    against: tuple[Annotated[Files | HubDataset, Field(discriminator="kind")], ...] = Field(
        (),
        title="Also against",
        description="Held-out text besides the evaluation's: what the tasks ask, for instance.",
    )


def ngrams(text: str, words: int) -> NGrams:
    """The hashes of a text's distinct n-grams, sorted; of a text of fewer words none."""
    return _join_words(_hash_words(text), words)


def _join_words(hashes: NGrams, words: int) -> NGrams:
    mixed = np.zeros(max(0, len(hashes) - words + 1), np.uint64)
    for k in range(words):
        mixed = (mixed ^ hashes[k : k + len(mixed)]) * _ODD  # wraps around, as meant
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)


def _hash_words(text: str) -> NGrams:
    return np.array([_hash_word(word) for word in _WORD.findall(text.lower())], np.uint64)


@functools.lru_cache(maxsize=2**20)
def _hash_word(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")


class SeenTexts:
    """The texts seen so far, to be asked whether another one is a duplicate of them."""

    def __init__(self, rule: ExactDuplicates | NearDuplicates) -> None:
        """Raises `ValueError` where the rule needs a package that isn't installed."""
        self._rule = rule
        self._hashes: set[bytes] = set()
        if isinstance(rule, NearDuplicates):
            try:
                from datasketch import MinHash, MinHashLSH
            except ImportError as error:
                raise ValueError(
                    "corpus.duplicates near needs the package datasketch; pip install 'llm-fuse[corpora]'"
                ) from error
            self._empty = MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=int, scheme="affine32")
            self._sketches = MinHashLSH(threshold=rule.similarity, num_perm=_PERMUTATIONS)
            self._kept: list[NDArray[np.uint32]] = []

    def has(self, text: str) -> bool:
        """Whether a text is a duplicate of one seen before; if not, it is seen from now on.

        A text of fewer words than an n-gram has is a duplicate of equal ones alone.
        """
        digest = hashlib.sha256(text.encode()).digest()
        if digest in self._hashes:
            return True
        if isinstance(self._rule, NearDuplicates) and self._has_near(text, self._rule):
            return True
        self._hashes.add(digest)
        return False

    def _has_near(self, text: str, rule: NearDuplicates) -> bool:
        grams = ngrams(text, rule.ngram)
        if not len(grams):
            return False
        sketch = self._empty.copy()
        for start in range(0, len(grams), _GRAMS_AT_ONCE):
            sketch.update_batch((grams[start : start + _GRAMS_AT_ONCE] & np.uint64(2**32 - 1)).tolist())
        values = sketch.hashvalues
        if any(np.mean(self._kept[number] == values) >= rule.similarity for number in self._sketches.query(sketch)):
            return True
        self._sketches.insert(len(self._kept), sketch)
        self._kept.append(values)
        return False


class HeldOutText:
    """The n-grams of held-out texts, to be asked how much of another text they have.

    A text of fewer words than an n-gram is taken as one n-gram of all its words: equal to another such text or not.
    `without_ngrams` is how many held-out texts are so short, or have no words at all; inside a longer document they
    aren't found.
    """

    def __init__(self, texts: Iterable[str], rule: Decontamination) -> None:
        self._rule = rule
        self.without_ngrams = 0
        parts = []
        for text in texts:
            hashes = _hash_words(text)
            self.without_ngrams += len(hashes) < rule.ngram
            parts.append(self._join(hashes))
        self._grams: NGrams = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)

    def overlap(self, text: str) -> float:
        """Share of the text's distinct n-grams that held-out text has, 0 to 1; 0 for a text without words."""
        grams = self._join(_hash_words(text))
        if not len(grams) or not len(self._grams):
            return 0.0
        place = np.searchsorted(self._grams, grams).clip(max=len(self._grams) - 1)
        return float((self._grams[place] == grams).mean())

    def contains(self, text: str) -> bool:
        """Whether more of the text is held out than the rule allows."""
        return self.overlap(text) > self._rule.max_overlap

    def _join(self, hashes: NGrams) -> NGrams:
        return _join_words(hashes, min(self._rule.ngram, max(1, len(hashes))))
