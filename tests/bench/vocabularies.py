"""Mapping real vocabularies by edit distance, against the dynamic programming of the definition on a sample.

The vocabularies are not part of the project: `tokenizer.json` files are looked for in `tokenizers/` of the folder
that LLM_FUSE_SHARED names, or else of `shared/` beside the checkout.
"""

import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fusion_core.min_edit import MinEdit
from fusion_core.vocabulary import Vocabulary, read_vocabulary
from tests.bench.rows import Action, Row, Skip, measure_peak, time_once

_TOKENIZERS = Path(os.environ.get("LLM_FUSE_SHARED") or Path(__file__).parents[3] / "shared") / "tokenizers"
_PAIRS = (("mpt", "llama-2", "<= 1.5 s"), ("qwen2", "llama-2", "<= 12 s"))
_SAMPLE = 8


def rows() -> Iterator[Row | Skip]:
    """One row per pair of vocabularies."""
    for source, target, limit in _PAIRS:
        name = f"MinEdit {source} -> {target}"
        missing = [found for found in (source, target) if not _path(found).is_file()]
        if missing:
            yield Skip(name, f"no {_path(missing[0])}")
        else:
            yield _compare(name, source, target, limit)


def _compare(name: str, source: str, target: str, limit: str) -> Row:
    asked, given = _read(source), _read(target)
    pieces = [piece for piece in asked.pieces_marked(given.word_marker) if piece]
    sample = pieces[:: len(pieces) // _SAMPLE][:_SAMPLE]
    known = [piece for piece in given.pieces_marked(given.word_marker) if piece]
    seconds = _time_again(partial(MinEdit(), asked, given))
    scaled = time_once(partial(_find_nearest_by_definition, sample, known)) * len(pieces) / len(sample)
    twin = f"dynamic programming, {len(sample)} of {len(pieces)} tokens scaled up"
    return Row(name, seconds, twin, scaled, measure_peak(partial(_prepare, source, target)), limit)


def _prepare(source: str, target: str) -> Action:
    return partial(MinEdit(), _read(source), _read(target))


def _read(name: str) -> Vocabulary:
    return read_vocabulary(json.loads(_path(name).read_text(encoding="utf-8")), {})


def _path(name: str) -> Path:
    return _TOKENIZERS / name / "tokenizer.json"


def _time_again(action: Action) -> float:
    """The least of two times, after one run that isn't counted."""
    action()
    return min(time_once(action), time_once(action))


def _find_nearest_by_definition(queries: Sequence[str], candidates: Sequence[str]) -> list[int]:
    """The nearest candidate of each query; a row of the table is one vector over all candidates of one length."""
    by_length: dict[int, list[int]] = {}
    for place, candidate in enumerate(candidates):
        by_length.setdefault(len(candidate), []).append(place)
    spelled = {n: np.array([list(map(ord, candidates[p])) for p in places]).T for n, places in by_length.items()}
    nearest = []
    for query in queries:
        distances = np.empty(len(candidates), dtype=np.int64)
        for length, places in by_length.items():
            distances[places] = _measure(query, spelled[length])
        nearest.append(int(distances.argmin()))
    return nearest


def _measure(query: str, candidates: np.ndarray) -> np.ndarray:
    """Edit distances of `query` to candidates of equal length, `[characters, candidates]` in code points."""
    length, number = candidates.shape
    before = np.repeat(np.arange(length + 1)[:, None], number, 1)
    for row, letter in enumerate(map(ord, query), start=1):
        here = np.empty_like(before)
        here[0] = row
        for column in range(length):
            replaced = before[column] + (candidates[column] != letter)
            here[column + 1] = np.minimum(replaced, np.minimum(before[column + 1], here[column]) + 1)
        before = here
    return before[length]
