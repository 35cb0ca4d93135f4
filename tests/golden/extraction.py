"""extract*.json with extract*.npz: the largest logits and the cross-entropies in fp16."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fusion_core.reference import Extracted, extract
from tests.golden.outcome import Outcome, Tally, distance

FILES = re.compile(r"extract.*\.json")
COMPANIONS = re.compile(r"extract.*\.npz")
_FLOAT64 = 1e-9


def check(path: Path) -> Outcome:
    arrays, tally = np.load(path.with_suffix(".npz")), Tally()
    for case in json.loads(path.read_text(encoding="utf-8")):
        logits, topk_logits, topk_indices, nll, mean = (
            torch.from_numpy(arrays[f"e{case['case']}_{name}"])
            for name in ("model_logits", "topk_logits", "topk_indices", "per_step_metric_ce", "metric_ce")
        )
        labels, mask = _pad(case)
        found = extract(logits, labels, mask, case["top_k"])
        same = found.logits.dtype == found.nll.dtype == found.cross_entropy.dtype == torch.float16
        same &= _same_ids(found, topk_indices.long(), logits)
        pairs = [(found.logits, topk_logits), (found.nll, nll), (found.cross_entropy, mean)]
        differences = [(distance(a, b), 0.0) for a, b in pairs]
        expected = [float("nan") if value is None else value for value in case["metric_ce_float64"]]
        differences.append((distance(_mean_nll(logits, labels), expected), _FLOAT64))
        tally.add(same, differences)
    return tally.outcome()


def _pad(case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    labels = torch.full((len(case["input_ids"]), case["max_length"]), -100)
    for row, ids in enumerate(case["input_ids"]):
        labels[row, : len(ids)] = torch.tensor(ids)
    return labels, (labels >= 0).long()


def _same_ids(found: Extracted, expected: Tensor, logits: Tensor) -> bool:
    """Equal but for the choice and the order among exactly equal logits, which the original leaves open."""
    at_expected = logits.half().gather(-1, expected)
    distinct = bool((expected.sort(-1).values.diff() != 0).all())
    tied = (found.logits == found.logits[..., -1:]) | (at_expected == at_expected[..., -1:])
    ranked = [ids.masked_fill(tied, -1).sort(-1).values for ids in (found.ids, expected)]
    return distinct and torch.equal(at_expected, found.logits) and torch.equal(*ranked)


def _mean_nll(logits: Tensor, labels: Tensor) -> Tensor:
    nll = cross_entropy(logits[:, :-1].double().flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    is_label = labels[:, 1:] >= 0
    return (nll.view(is_label.shape) * is_label).sum(1) / is_label.sum(1)
