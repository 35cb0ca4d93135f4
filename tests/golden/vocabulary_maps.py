"""vocab_map_*.json: the target token of least edit distance for each source token."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from fusion_core.edit_distance import edit_distances
from fusion_core.min_edit import MinEdit
from tests.golden.outcome import Outcome, Tally
from tests.golden.vocabularies import find_pieces, make_vocabulary

FILES = re.compile(r"vocab_map_.*\.json")
_ROWS_AT_A_TIME = 64

Json = dict[str, Any]


def check(path: Path) -> Outcome:
    content = json.loads(path.read_text(encoding="utf-8"))
    pieces = content.get("base_tokens") or find_pieces(content["base"], path.parent)
    if pieces is None:
        raise FileNotFoundError(f"expected the vocabulary {content['base']!r} in tokenizers/, found none")
    target = make_vocabulary(pieces, content["base_marker"])
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]
    asked = content.get("blending_tokens") or [row["blending_token"] for row in rows]
    source = make_vocabulary(asked, content["blending_marker"])
    spelled = [piece or "" for piece in source.pieces_marked(target.word_marker)]
    mapped = MinEdit(reference=True)(source, target).ids.tolist()
    distances, ties = _measure(spelled, [pieces[token] or "" for token in mapped], [p for p in pieces if p is not None])
    tally = Tally()
    for i, row in enumerate(rows):
        found = {
            "blending_token": asked[i],
            "tmp_x": spelled[i],
            "mapped_base_token": pieces[mapped[i]],
            "edit_distance": distances[i],
            "n_base_tokens_at_that_distance": ties[i],
            "mapped_base_id": mapped[i],
        }
        tally.add(all(found[name] == value for name, value in row.items()))
    if "mapping_len" in content:
        final = {name: pieces[token] for name, token in zip(spelled, mapped, strict=True)}
        identities = sum(name == token for name, token in final.items())
        tally.add((len(final), identities, len(asked)) == (content["mapping_len"], content["n_identity"], len(rows)))
    return tally.outcome()


def _measure(spelled: list[str], mapped: list[str], given: list[str]) -> tuple[list[int], list[int]]:
    """The distance of each token to what it maps to, and how many target tokens are that far from it."""
    distances: list[int] = []
    ties: list[int] = []
    for start in range(0, len(spelled), _ROWS_AT_A_TIME):
        some = slice(start, start + _ROWS_AT_A_TIME)
        own = np.diagonal(edit_distances(spelled[some], mapped[some]))
        distances += own.tolist()
        ties += (edit_distances(spelled[some], given) == own[:, None]).sum(1).tolist()
    return distances, ties
