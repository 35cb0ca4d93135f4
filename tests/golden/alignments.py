"""align_*.json with align_*.npz: the path of dynamic time warping, and the source's rows on the target's tokens.

Vocabulary maps are recomputed where both vocabularies are found, and compared with the file's own; where one isn't, the
file's own map is an input.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion_core.alignment import ExactDTW, MinEditDTW, Pair
from fusion_core.alignment.warping import token_sequences
from fusion_core.dtw import warp
from fusion_core.min_edit import MinEdit
from fusion_core.types import NO_BOUNDARY, Scored, TokenDist, Tokens, VocabMap
from fusion_core.vocabulary import Vocabulary
from tests.golden.outcome import Outcome, Tally, distance
from tests.golden.vocabularies import Pieces, collect_pieces, find_pieces, make_vocabulary

FILES = re.compile(r"align_.*\.json")
COMPANIONS = re.compile(r"align_.*\.npz")
_FLOAT64 = 1e-12

Json = dict[str, Any]
Arrays = Mapping[str, NDArray[Any]]


def check(path: Path) -> Outcome:
    content, arrays = json.loads(path.read_text(encoding="utf-8")), np.load(path.with_suffix(".npz"))
    table = {int(token): entry for token, entry in content["blend_token_table"].items()}
    samples, tally = content["samples"], Tally()
    sides = _Sides.read(content, table, path.parent)
    source, target = _tokens(samples, "blend_ids"), _tokens(samples, "base_ids")
    same_offsets = [
        np.array_equal(t.doc_offsets, arrays[f"{side}_off"]) for side, t in (("blend", source), ("base", target))
    ]
    tally.add(all(same_offsets))
    _check_paths(tally, samples, source, target, sides)
    scored = Scored(source, _read_rows(arrays, sides.source.size), torch.zeros(len(source.ids)))
    first_marker = content["blending_tokenizer_is_gptneox_class"]
    for mode, column, mapping, strategy in (
        ("hard", 1, MinEdit(max_distance=0, reference=True), ExactDTW(reference=True, first_marker=first_marker)),
        ("soft", 2, MinEdit(reference=True), MinEditDTW(reference=True, first_marker=first_marker)),
    ):
        expected = {token: entry[column] for token, entry in table.items()}
        vocab_map = _map(sides, mapping, expected)
        for token, base_id in expected.items():
            tally.add(int(vocab_map.ids[token]) == base_id)
        aligned = strategy(scored, target, Pair(sides.source, sides.target, vocab_map))
        _check_rows(tally, aligned.dist, target, arrays, mode)
    return tally.outcome()


@dataclass(frozen=True)
class _Sides:
    """Both vocabularies; `complete` says whether all of their tokens are known."""

    source: Vocabulary
    target: Vocabulary
    complete: bool

    @classmethod
    def read(cls, content: Json, table: Mapping[int, Sequence[Any]], near: Path) -> "_Sides":
        samples = content["samples"]
        in_use = {
            "blending": [*((token, entry[0]) for token, entry in table.items()), *_pairs(samples, "blend")],
            "base": _pairs(samples, "base"),
        }
        pieces = {side: _find(content[side], near, pairs) for side, pairs in in_use.items()}
        complete = pieces["base"] is not None
        base = pieces["base"] or collect_pieces(iter(in_use["base"]))
        if not complete:  # ids that only the file's own map names
            base += (None,) * (max(max(entry[1:]) for entry in table.values()) + 1 - len(base))
        source = pieces["blending"] or collect_pieces(iter(in_use["blending"]))
        return cls(
            make_vocabulary(source, content["blending_marker"]), make_vocabulary(base, content["base_marker"]), complete
        )


def _find(name: str, near: Path, in_use: Sequence[tuple[int, str]]) -> Pieces | None:
    """The vocabulary of this name, unless it isn't found or isn't the one that the samples were made with."""
    pieces = find_pieces(name, near)
    fits = pieces is not None and all(token < len(pieces) and pieces[token] == text for token, text in in_use)
    return pieces if fits else None


def _pairs(samples: Sequence[Json], side: str) -> list[tuple[int, str]]:
    return [pair for s in samples for pair in zip(s[f"{side}_ids"], s[f"{side}_tokens"], strict=True)]


def _map(sides: _Sides, mapping: MinEdit, expected: Mapping[int, int]) -> VocabMap:
    if sides.complete:
        return mapping(sides.source, sides.target)
    ids = torch.full((sides.source.size,), -1)
    ids[torch.tensor(list(expected))] = torch.tensor(list(expected.values()))
    return VocabMap(ids, sides.target.size)


def _tokens(samples: Sequence[Json], key: str) -> Tokens:
    ids = torch.tensor([token for s in samples for token in s[key]])
    offsets = torch.tensor([0, *np.cumsum([len(s[key]) for s in samples]).tolist()])
    return Tokens(ids, torch.full_like(ids, NO_BOUNDARY), offsets)


def _read_rows(arrays: Arrays, vocab_size: int) -> TokenDist:
    logits = torch.from_numpy(arrays["blend_logits"]).double()
    ids = torch.from_numpy(arrays["blend_indices"]).long().flatten()
    rows, width = logits.shape
    nothing = torch.full((rows,), -torch.inf, dtype=torch.float64)
    offsets = torch.arange(rows + 1) * width
    return TokenDist(offsets, ids, logits.log_softmax(1).flatten(), nothing, nothing, vocab_size)


def _check_paths(tally: Tally, samples: Sequence[Json], source: Tokens, target: Tokens, sides: _Sides) -> None:
    path = warp(token_sequences(source, sides.source), token_sequences(target, sides.target))
    document = torch.bucketize(torch.from_numpy(path.target), target.doc_offsets, right=True) - 1
    for d, sample in enumerate(samples):
        in_doc = (document == d).numpy()
        first = np.array([source.doc_offsets[d], target.doc_offsets[d]])
        found = (np.stack([path.source[in_doc], path.target[in_doc]], axis=1) - first).flatten().tolist()
        tally.add(found == sample["dtw_matches"], [(distance(path.costs[d], sample["dtw_cost"]), 0.0)])


def _check_rows(tally: Tally, dist: TokenDist, target: Tokens, arrays: Arrays, mode: str) -> None:
    """One case per sample: all of its rows."""
    offsets = torch.from_numpy(arrays[f"{mode}_row_off"]).long()
    ids, logits = (torch.from_numpy(arrays[f"{mode}_{what}"]) for what in ("indices", "logits"))
    logprobs = _normalise(logits.double(), offsets)
    for first, last in target.doc_offsets.unfold(0, 2, 1).tolist():
        found = dist.rows(first, last)
        start, stop = offsets[[first, last]].tolist()
        same = torch.equal(found.row_offsets, offsets[first : last + 1] - start)
        same = same and torch.equal(found.ids, ids[start:stop].long())
        tally.add(same, [(distance(found.logprobs, logprobs[start:stop]), _FLOAT64)])


def _normalise(logits: Tensor, offsets: Tensor) -> Tensor:
    """Each ragged row's log-softmax."""
    return torch.cat([logits[a:b].log_softmax(0) for a, b in offsets.unfold(0, 2, 1).tolist()])
