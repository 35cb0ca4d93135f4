"""The step that collects the quickstart's texts: five splits of three domains, no text in two of them."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fusion_core.spec import Spec
from tasks.artifacts import Runtime, TextsRef
from tasks.corpora.installed import InstalledText, describe_installation, installed_files, read_documents
from tasks.step import Output, step

SHINGLE_WORDS = 5
"""A shingle is this many words in a row, lower-cased: short enough to survive edits, long enough to be telling."""

_WORD = re.compile(r"\w+")
_ODD = np.uint64(0x9E3779B97F4A7C15)


class Split(Spec):
    """One split: its share of the files, and what is taken of them per domain."""

    share: float = Field(
        gt=0, le=1, title="Share of files", description="Of all files; what the shares leave over isn't read."
    )
    max_bytes: int = Field(
        gt=0, title="Bytes per domain", description="Documents are taken until one more would pass it."
    )
    document_bytes: int = Field(
        gt=0,
        title="Bytes per document",
        description="Of a longer file a run of whole lines is taken, at a place drawn by its hash.",
    )


class InstalledTexts(Spec):
    """Texts that every Python installation carries, split by a hash of the file they stand in."""

    kind: Literal["installed_texts"] = "installed_texts"
    distributions: tuple[str, ...] = Field(
        ("networkx", "numpy", "pandas"),
        title="Distributions",
        description="Installed packages whose docstrings are read for prose, besides the standard library.",
    )
    sources: Split = Split(share=0.50, max_bytes=5_000_000, document_bytes=40_000)
    target: Split = Split(share=0.08, max_bytes=500_000, document_bytes=12_000)
    fusion: Split = Split(share=0.12, max_bytes=600_000, document_bytes=8_000)
    validation: Split = Split(share=0.05, max_bytes=80_000, document_bytes=2_000)
    test: Split = Split(share=0.10, max_bytes=160_000, document_bytes=2_000)
    min_document_bytes: int = Field(
        400, gt=0, title="Shortest document", description="Bytes; shorter files are left out."
    )
    max_overlap: float = Field(
        0.4,
        gt=0,
        le=1,
        title="Overlap",
        description="Share of a document's shingles that longer documents may hold as well.",
    )
    salt: str = Field("llm-fuse", title="Salt", description="Another salt puts other files into each split.")

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        total = sum(split.share for split in self.splits.values())
        if total > 1 + 1e-9:
            raise ValueError(f"expected shares of files that add up to at most 1, found {total:g}; lower some of them")
        return self

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name, in the order of the fields."""
        return {name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), Split)}


def _pin_installation(spec: InstalledTexts, *, runtime: Runtime) -> dict[str, object]:
    return dict(describe_installation(spec.distributions))


@step(version=1, pin=_pin_installation)
def collect_texts(spec: InstalledTexts, *, runtime: Runtime, out: Output) -> TextsRef:
    """One Parquet file per split with the columns id, text, domain and source, in an order drawn by hash."""
    files = [f for f in installed_files(spec.distributions) if split_of(f.name, spec)]
    documents: list[InstalledText] = []
    for number, file in enumerate(files):
        documents += cut_to_split(read_documents(file), spec)
        out.progress(number + 1, len(files), "files")
    kept = drop_near_duplicates(documents, spec.max_overlap)
    for name, split in spec.splits.items():
        chosen = take_per_domain([d for d in kept if split_of(d.source, spec) == name], split.max_bytes)
        _write_parquet(chosen, out.dir / f"{name}.parquet")
        out.facts[name] = _measure(chosen)
    out.facts["near_duplicates_dropped"] = len(documents) - len(kept)
    return out.ref(TextsRef)


def split_of(source: str, spec: InstalledTexts) -> str:
    """The name of the split that a file belongs to, by a hash of its name; empty for a file of none."""
    place = _draw(spec.salt, source)
    for name, split in spec.splits.items():
        place -= split.share
        if place < 0:
            return name
    return ""


def cut_to_split(documents: Sequence[InstalledText], spec: InstalledTexts) -> Iterator[InstalledText]:
    """Documents of files in a split, none longer than that allows; those below the shortest length are left out."""
    for document in documents:
        limit = spec.splits[split_of(document.source, spec)].document_bytes
        text = take_lines(document.text, limit, _draw(spec.salt, "place", document.source))
        if len(text.encode()) >= min(spec.min_document_bytes, limit):
            yield replace(document, text=text)


def take_lines(text: str, limit: int, place: float) -> str:
    """A run of whole lines of at most `limit` UTF-8 bytes that starts at the share `place` (0 to 1) of the text.

    The whole text where it fits; empty where the first line of the run is longer than the limit.
    """
    lines = text.splitlines(keepends=True)
    ends = np.cumsum([len(line.encode()) for line in lines], dtype=np.int64)
    if not lines or ends[-1] <= limit:
        return text
    starts = np.concatenate([[0], ends[:-1]])
    first = min(int(np.searchsorted(starts, place * (ends[-1] - limit))), len(lines) - 1)
    last = int(np.searchsorted(ends, starts[first] + limit, side="right"))
    return "".join(lines[first:last]).strip("\n")


def drop_near_duplicates(documents: Sequence[InstalledText], max_overlap: float) -> list[InstalledText]:
    """The documents, in their order, that share at most `max_overlap` of their shingles with longer ones.

    Exact, not sketched; a longer document counts whether or not it is kept itself. The Jaccard similarity of any two
    kept documents is at most `max_overlap` too, since the shorter one's shared shingles bound it. A document of fewer
    words than a shingle has none and is dropped. Of equal documents the first by source stays.
    """
    shingles = shingle([d.text for d in documents])
    order = sorted(range(len(documents)), key=lambda i: (-len(shingles[i]), documents[i].source, documents[i].domain))
    _, first = np.unique(np.concatenate([shingles[i] for i in order] or [np.empty(0, np.uint64)]), return_index=True)
    ends = np.cumsum([len(shingles[i]) for i in order])
    new = np.diff(np.searchsorted(np.sort(first), ends), prepend=0)  # shingles that no longer document has
    kept = {i for i, n in zip(order, new, strict=True) if n > 0 and n >= (1 - max_overlap) * len(shingles[i])}
    return [document for i, document in enumerate(documents) if i in kept]


def shingle(texts: Sequence[str]) -> list[np.ndarray]:
    """The distinct shingles of each text, as sorted 64-bit numbers that mean the same in every text of this call."""
    word_ids: dict[str, int] = {}
    found = []
    for text in texts:
        words = np.array([word_ids.setdefault(w, len(word_ids) + 1) for w in _WORD.findall(text.lower())], np.uint64)
        mixed = np.zeros(max(0, len(words) - SHINGLE_WORDS + 1), np.uint64)
        for k in range(SHINGLE_WORDS):
            mixed = (mixed ^ words[k : k + len(mixed)]) * _ODD  # wraps around, as meant
            mixed ^= mixed >> np.uint64(29)
        found.append(np.unique(mixed))
    return found


def take_per_domain(documents: Sequence[InstalledText], max_bytes: int) -> list[InstalledText]:
    """Documents in an order drawn by their ids, as many per domain as fit `max_bytes` before one would not."""
    room: dict[str, int] = defaultdict(lambda: max_bytes)
    taken = []
    for document in sorted(documents, key=lambda d: (d.id, d.source)):
        room[document.domain] -= len(document.text.encode())
        if room[document.domain] >= 0:
            taken.append(document)
    return taken


def _draw(*words: str) -> float:
    """A number in 0..1 that depends on nothing but the words."""
    return int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:6]) / 2**48


def _measure(documents: Sequence[InstalledText]) -> dict[str, dict[str, int]]:
    facts: dict[str, dict[str, int]] = {}
    for document in sorted(documents, key=lambda d: d.domain):
        of_domain = facts.setdefault(document.domain, {"documents": 0, "bytes": 0})
        of_domain["documents"] += 1
        of_domain["bytes"] += len(document.text.encode())
    return facts


def _write_parquet(documents: Sequence[InstalledText], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [getattr(d, name) for d in documents] for name in ("id", "text", "domain", "source")}
    pq.write_table(pa.table(columns, pa.schema([(name, pa.string()) for name in columns])), path, compression="zstd")
