"""loss_cases*.json with loss_arrays*.npz: the collator's targets, the loss and its gradient."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_core.reference import Batch, Objective, Targets, collate_targets
from tests.golden.outcome import Outcome, Tally, distance

FILES = re.compile(r"loss_cases.*\.json")
COMPANIONS = re.compile(r"loss_arrays.*\.npz")

_SOURCES = {"base": "", "a0": "_0", "a1": "_1"}
_COMBINE = {"greater_as_gt": "min_ce", "weighted_as_gt": "avg_ce"}
_FLOAT64 = 1e-12
_FP32 = 1e-5  # the student's softmax
_TYPES = {"ref": (torch.bfloat16, 0.0), "f64": (torch.float64, _FLOAT64)}
_NAMES = {"base_target_dist": "base", "aligned_target_dist_0": "a0", "aligned_target_dist_1": "a1"}
_TARGETS = re.compile(r"b(?P<batch>\d+)_T(?P<temperature>[\d.]+)_(?P<type>ref|f64)_(?P<name>\w+_dist(_\d)?)")
_BF16_TERM = 5e-4  # of the teacher's term, should one of its targets fall on the other side of a rounding

Arrays = Mapping[str, Any]
Json = dict[str, Any]


def check(path: Path) -> Outcome:
    entries = json.loads(path.read_text(encoding="utf-8"))
    arrays = np.load(path.with_name(path.name.replace("cases", "arrays")).with_suffix(".npz"))
    inputs = {entry["batch_inputs"]: entry for entry in entries if "batch_inputs" in entry}
    tally = Tally()
    for key in filter(_TARGETS.fullmatch, arrays):
        _check_targets(tally, key, inputs, arrays)
    for case in (entry for entry in entries if "case" in entry):
        _check_case(tally, case, inputs[case["batch"]], arrays)
    return tally.outcome()


def _check_targets(tally: Tally, key: str, inputs: Mapping[int, Json], arrays: Arrays) -> None:
    match = _TARGETS.fullmatch(key)
    assert match
    batch, (dtype, allowed) = inputs[int(match["batch"])], _TYPES[match["type"]]
    targets = _collate(batch, float(match["temperature"]), dtype)
    dense = _densify(targets[_NAMES[match["name"]]], batch["vocab_size"])
    tally.add(True, [(distance(dense, arrays[key]), allowed)])


def _check_case(tally: Tally, case: Json, batch: Json, arrays: Arrays) -> None:
    student = torch.from_numpy(arrays[f"b{case['batch']}_student_logits"])
    loss, gradient = _score(case, batch, student.double(), torch.float64)
    same = case["f64_loss_dtype"] == str(loss.dtype)
    differences = [
        (distance(loss, case["f64_loss"]), _FLOAT64),
        (distance(gradient.norm(), case["f64_grad_norm"]), _FLOAT64),
        (distance(gradient, arrays[f"c{case['case']}_f64_grad"]), _FLOAT64),
    ]
    loss, gradient = _score(case, batch, student, torch.bfloat16)
    same &= case["ref_loss_dtype"] == str(loss.dtype)
    share = 1.0 if case["type"] == "soft" else 1 - case["lm_loss_weight"]
    same &= distance(loss, case["ref_loss"]) <= _FP32 + share * _BF16_TERM
    same &= distance(gradient.norm(), case["ref_grad_norm"]) <= _FP32 + share * _BF16_TERM
    tally.add(same, differences)


def _score(case: Json, batch: Json, logits: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient in the logits."""
    features = batch["features"]
    labels = _pad_rows([f["labels"] for f in features], batch["max_length"], -100)
    mask = _pad_rows([f["attention_mask"] for f in features], batch["max_length"], 0)
    targets = _collate(batch, float(case["teacher_temperature"]), dtype)
    names = ["metric_ce" + (f"_aligned{_SOURCES[source]}" if source != "base" else "") for source in case["sources"]]
    cross_entropy = torch.tensor([[f[name] for name in names] for f in features], dtype=torch.float64)
    teachers = tuple(targets[source] for source in case["sources"])
    objective = Objective.model_validate(
        {
            "combine": _COMBINE[case["combine"]],
            "weighting": case["type"],
            "loss": case["loss_type"],
            "lm_weight": case["lm_loss_weight"],
        }
    )
    given = Batch(labels, mask, teachers, cross_entropy, base_teaches="base" in case["sources"])
    logits = logits.clone().requires_grad_()
    loss = objective(logits, given, step=case.get("global_step", 0), max_steps=case.get("max_steps", 1))
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def _collate(batch: Json, temperature: float, dtype: torch.dtype) -> dict[str, Targets]:
    """The targets of each source; the base's rows stand in for the others' empty ones."""
    features = batch["features"]
    lengths = torch.tensor([len(f["per_step_logits"]) for f in features])
    targets: dict[str, Targets] = {}
    for source, number in _SOURCES.items():
        middle = f"aligned_{{}}{number}" if number else "{}"
        ids, logits = (
            _pad_entries([f["per_step_" + middle.format(what)] for f in features], batch["max_length"], filler)
            for what, filler in (("indices", 0), ("logits", -torch.inf))
        )
        targets[source] = collate_targets(
            ids.long(),
            logits,
            lengths,
            pad_id=batch["pad_id"],
            base=targets.get("base"),
            temperature=temperature,
            dtype=dtype,
        )
    return targets


def _pad_rows(rows: Sequence[Sequence[int]], length: int, filler: int) -> Tensor:
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])


def _pad_entries(sequences: Sequence[Sequence[Sequence[float]]], length: int, filler: float) -> Tensor:
    width = max(1, *(len(row) for sequence in sequences for row in sequence))
    padded = torch.full((len(sequences), length, width), filler, dtype=torch.float64)
    for number, sequence in enumerate(sequences):
        for place, row in enumerate(sequence):
            padded[number, place, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return padded


def _densify(target: Targets, vocab_size: int) -> Tensor:
    dense = torch.zeros(*target.ids.shape[:2], vocab_size, dtype=torch.float64)
    return dense.scatter_add_(2, target.ids, target.probs.double())
