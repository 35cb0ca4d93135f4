"""The original's packing of sequences into blocks of equal length."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np

Columns = dict[str, list[Any]]
"""Lists by name, one item per sequence: per-token columns hold a list each, metrics of sequences a number. `Any`:
what a token has (an id, a list of logits) is none of packing's business."""

_METRIC = "metric_ce"
_PER_TOKEN = "per_step_"


def pack(
    columns: Mapping[str, Sequence[Any]],
    block_size: int,
    *,
    metric_level: Literal["sequence", "token"] = "sequence",
    mended: bool = False,
) -> Columns:
    """All sequences joined and cut every `block_size` tokens; the shorter rest is a block too.

    Columns named `metric_ce...` become one number per block: a sequence's cross-entropy counts once per token of it
    in the block. At the level of tokens that is the mean of `per_step_metric_ce...`, which loses the prefix.
    mended: do that. As written, the original adds the new name to a dictionary while it walks over it, and dies.

    Raises:
        ValueError: no columns, or no block size.
        RuntimeError: at the level of tokens, unless mended, where there is such a column.
    """
    if not columns or block_size < 1:
        raise ValueError(
            f"expected columns and a block size of at least 1, found {len(columns)} and {block_size}; the "
            "original takes 2048"
        )
    joined = {name: list(chain.from_iterable(values)) for name, values in _spread(columns, metric_level).items()}
    total = len(next(iter(joined.values())))
    blocks = {name: [v[i : i + block_size] for i in range(0, total, block_size)] for name, v in joined.items()}
    if metric_level == "sequence":
        return {name: _means(cut) if _METRIC in name else cut for name, cut in blocks.items()}
    per_token = [name for name in blocks if _PER_TOKEN + _METRIC in name]
    means = {name.replace(_PER_TOKEN, ""): _means(blocks[name]) for name in per_token}
    if not mended and not means.keys() <= blocks.keys():
        raise RuntimeError("dictionary changed size during iteration")
    return {name: cut for name, cut in (blocks | means).items() if name not in per_token}


def _spread(columns: Mapping[str, Sequence[Any]], metric_level: str) -> Mapping[str, Sequence[Any]]:
    """At the level of sequences, the columns with each metric repeated for every token of its sequence."""
    if metric_level != "sequence":
        return columns
    lengths = [len(ids) for ids in columns["input_ids"]]
    return {
        name: [[value] * n for value, n in zip(values, lengths, strict=True)] if _METRIC in name else values
        for name, values in columns.items()
    }


def _means(blocks: Sequence[Sequence[float]]) -> list[float]:
    """Summed one by one from the left, as the original does: pairwise sums differ in the last digit."""
    if not all(blocks):
        raise ValueError("expected a cross-entropy for every token, found a block without any; pack whole columns")
    return [float(np.add.accumulate(block)[-1]) / len(block) for block in blocks]
