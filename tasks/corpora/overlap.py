"""Texts that share words with others: near duplicates within a corpus, and what it has of held-out text.

Both compare n-grams of words, lower-cased and without punctuation, as 64-bit hashes that mean the same in every
process. Where words aren't set apart by spaces, a run of letters counts as one word.
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
_WORD = re.compile(r"\w+")
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
    ngram: int = Field(5, gt=0, title="Words per n-gram", description="That are compared.")


class Decontamination(Spec):
    """Which documents are left out because held-out text has parts of them."""

    ngram: int = Field(
        13,
        gt=0,
        title="Words per n-gram",
        description="So many words in a row that held-out text has too are no chance.",
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
    found = np.array([_hash_word(word) for word in _WORD.findall(text.lower())], np.uint64)
    mixed = np.zeros(max(0, len(found) - words + 1), np.uint64)
    for k in range(words):
        mixed = (mixed ^ found[k : k + len(mixed)]) * _ODD  # wraps around, as meant
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)


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
    """The n-grams of held-out texts, to be asked how much of another text they have."""

    def __init__(self, texts: Iterable[str], rule: Decontamination) -> None:
        self._rule = rule
        parts = [ngrams(text, rule.ngram) for text in texts]
        self._grams: NGrams = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)

    def overlap(self, text: str) -> float:
        """Share of the text's distinct n-grams that held-out text has, 0 to 1; 0 for a text of too few words."""
        grams = ngrams(text, self._rule.ngram)
        if not len(grams) or not len(self._grams):
            return 0.0
        place = np.searchsorted(self._grams, grams).clip(max=len(self._grams) - 1)
        return float((self._grams[place] == grams).mean())

    def contains(self, text: str) -> bool:
        """Whether more of the text is held out than the rule allows."""
        return self.overlap(text) > self._rule.max_overlap
