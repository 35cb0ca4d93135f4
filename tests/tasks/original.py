"""The original's way from texts to rows on the target's tokens, in loops: what a model keeps, maps and matches."""

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

from fusion_core.edit_distance import edit_distances
from fusion_core.reference import extract
from fusion_core.types import Tokens
from tasks.models.folders import load_model

K = 10
Row = tuple[list[int], list[float]]
"""Ids and logits of a row, in the order in which they are kept."""


@dataclass(frozen=True)
class Read:
    """One model's documents as the original stores them."""

    ids: list[list[int]]
    pieces: list[list[str]]  # without word markers
    names: list[list[str]]  # with the target's
    rows: list[list[Row]]
    cross_entropy: list[float]


def read_as_original(path: Path, marker: str, tokens: Tokens) -> Read:
    from transformers import AutoTokenizer

    model, tokenizer = load_model(path, "float32"), AutoTokenizer.from_pretrained(path)
    documents = [tokens.ids[a:b] for a, b in pairwise(tokens.doc_offsets.tolist())]
    rows, costs = [], []
    for ids in documents:
        with torch.no_grad():
            mask = torch.ones(1, len(ids), dtype=torch.long)
            logits = model(input_ids=ids[None], attention_mask=mask).logits
        kept = extract(logits, ids[None], mask, K)
        rows.append(list(zip(kept.ids[0].tolist(), kept.logits[0].tolist(), strict=True)))
        costs.append(float(kept.cross_entropy))
    pieces = [tokenizer.convert_ids_to_tokens(ids.tolist()) for ids in documents]
    return Read(
        [ids.tolist() for ids in documents],
        [[piece.replace(marker, "") for piece in document] for document in pieces],
        [[piece.replace(marker, "▁") for piece in document] for document in pieces],
        rows,
        costs,
    )


def spell_vocabulary(path: Path) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    return tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))


def map_nearest(path: Path, target: list[str]) -> dict[int, int]:
    """The nearest target token of each source token, the first of equals."""
    names = [piece.replace("Ġ", "▁") for piece in spell_vocabulary(path)]
    return dict(enumerate(edit_distances(names, target).argmin(1).tolist()))


@cache
def _edits(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, above = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def _warp(source: list[str], target: list[str]) -> list[tuple[int, int]]:
    """The cheapest path, traced back; ties: diagonal, up, left."""
    cost = [[math.inf] * (len(target) + 1) for _ in range(len(source) + 1)]
    cost[0][0] = 0.0
    for i, a in enumerate(source, 1):
        for j, b in enumerate(target, 1):
            cost[i][j] = _edits(a, b) + min(cost[i - 1][j - 1], cost[i - 1][j], cost[i][j - 1])
    i, j, path = len(source), len(target), []
    while i and j:
        path.append((i - 1, j - 1))
        i, j = min([(i - 1, j - 1), (i - 1, j), (i, j - 1)], key=lambda at: cost[at[0]][at[1]])
    return path


def bring_rows(source: Read, target: Read, ids: dict[int, int]) -> list[list[Row]]:
    """The source's rows on the target's tokens; a one-hot on the token just read where nothing matches."""
    documents = []
    for d in range(len(target.ids)):
        path, rows = _warp(source.pieces[d], target.pieces[d]), []
        for i, token in enumerate(target.ids[d]):
            matches = [a for a, b in path if b == i]
            row = ([token], [1.0])
            if len(matches) == 1:
                (j,) = matches
                same = source.names[d][j] == target.names[d][i] or ids[source.ids[d][j]] == token
                row = _first_of_equals(source.rows[d][j], ids) if same else row
            rows.append(row)
        documents.append(rows)
    return documents


def _first_of_equals(row: Row, ids: dict[int, int]) -> Row:
    kept: dict[int, float] = {}
    for token, logit in zip(*row, strict=True):
        kept.setdefault(ids[token], logit)
    return list(kept), list(kept.values())
