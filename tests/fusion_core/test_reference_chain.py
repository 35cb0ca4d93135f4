"""The original's rules as choices of a recipe, against the outputs that the original itself has left."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from fusion_core.distributions import ReferenceTopK, TopK, reduce_logits
from fusion_core.divergences import ReferenceCrossEntropy, ReferenceKL
from fusion_core.fusion import FusionStrategy
from fusion_core.losses import fusion_loss_from_logits, raise_lm_weight
from fusion_core.reference import extract
from fusion_core.reference.extraction import mean_nll
from fusion_core.reference.fusion import ReferenceMinCE
from fusion_core.types import NO_BOUNDARY, Aligned, Fused, TokenDist, Tokens

GOLDEN = Path(__file__).parent / "golden"
KINDS = {"greater_as_gt": "reference_min_ce", "weighted_as_gt": "reference_avg_ce"}
MIDDLE = {"base": "", "a0": "aligned_", "a1": "aligned_"}
END = {"base": "", "a0": "_0", "a1": "_1"}
Json = dict[str, Any]


def read_cases() -> tuple[list[Json], dict[int, Json], Any]:
    entries = json.loads((GOLDEN / "loss_cases.json").read_text(encoding="utf-8"))
    batches = {entry["batch_inputs"]: entry for entry in entries if "batch_inputs" in entry}
    return [entry for entry in entries if "case" in entry], batches, np.load(GOLDEN / "loss_arrays.npz")


CASES, BATCHES, ARRAYS = read_cases()


def gives_every_row(case: Json) -> bool:
    """Whether no row needs the target's own where the target isn't among those who teach."""
    if "base" in case["sources"]:
        return True
    features = BATCHES[case["batch"]]["features"]
    return all(row for f in features for source in case["sources"] for row in f[_name("indices", source)])


def _name(what: str, source: str) -> str:
    return f"per_step_{MIDDLE[source]}{what}{END[source]}"


def make_candidate(batch: Json, source: str, temperature: float) -> Aligned:
    """The stored logits of all sequences as a candidate: rounded to bf16 and tempered there, then normalised."""
    features = batch["features"]
    rows = [row for f in features for row in f[_name("logits", source)]]
    logits = [(torch.tensor(row).bfloat16() / temperature).double() for row in rows]
    ids = [_distinct(row) for f in features for row in f[_name("indices", source)]]
    kept = [values[places] for values, places in zip(logits, ids, strict=True)]
    widths = torch.tensor([0, *map(len, kept)])
    nothing = torch.full((len(rows),), -torch.inf, dtype=torch.float64)
    flat = [row for f in features for row in f[_name("indices", source)]]
    dist = TokenDist(
        row_offsets=widths.cumsum(0),
        ids=torch.cat([torch.tensor(row, dtype=torch.long)[places] for row, places in zip(flat, ids, strict=True)]),
        logprobs=torch.cat([values.log_softmax(0) for values in kept]),
        tail_logprob=nothing,
        unknown_logprob=nothing.masked_fill(widths[1:] == 0, 0.0),
        vocab_size=batch["vocab_size"],
    )
    metric = "metric_ce" + (f"_aligned{END[source]}" if source != "base" else "")
    spans = torch.full((len(rows),), torch.nan)
    return Aligned(dist, spans, torch.zeros(len(rows), dtype=torch.long), torch.tensor([f[metric] for f in features]))


def _distinct(row: list[int]) -> Tensor:
    return torch.tensor([place for place, token in enumerate(row) if token not in row[:place]], dtype=torch.long)


def fuse(case: Json) -> tuple[Fused, Tensor, Tensor]:
    """The teacher, and the students' logits and labels of its rows."""
    batch = BATCHES[case["batch"]]
    lengths = [sum(f["attention_mask"]) for f in batch["features"]]
    ids = torch.tensor([token for f in batch["features"] for token in f["input_ids"]])
    tokens = Tokens(ids, torch.full_like(ids, NO_BOUNDARY), torch.tensor([0, *lengths]).cumsum(0))
    strategy = TypeAdapter[Any](FusionStrategy).validate_python(
        {
            "kind": KINDS[case["combine"]],
            "base_teaches": "base" in case["sources"],
            "trust": "reward" if case["type"] == "soft" else "all",
        }
    )
    candidates = [make_candidate(batch, source, float(case["teacher_temperature"])) for source in case["sources"]]
    student = torch.from_numpy(ARRAYS[f"b{case['batch']}_student_logits"])
    logits = torch.cat([rows[:length] for rows, length in zip(student, lengths, strict=True)])
    labels = ids.roll(-1)
    labels[tokens.doc_offsets[1:] - 1] = -100
    return strategy(candidates, tokens), logits, labels


@pytest.mark.parametrize("case", [c for c in CASES if gives_every_row(c)], ids=lambda case: f"case{case['case']}")
def test_fusing_and_training_give_the_loss_that_the_original_recorded(case: Json) -> None:
    fused, logits, labels = fuse(case)
    lm_weight = {"hard": case["lm_loss_weight"], "soft": 0.0}.get(case["type"])
    if lm_weight is None:
        lm_weight = raise_lm_weight(case["lm_loss_weight"], case["global_step"], case["max_steps"])
    divergence = {"ce": ReferenceCrossEntropy(), "kl": ReferenceKL()}[case["loss_type"]]
    logits.requires_grad_()
    found = fusion_loss_from_logits(logits, labels, fused.dist, lm_weight=lm_weight, divergence=divergence)
    assert found.loss.item() == pytest.approx(case["ref_loss"], abs=1e-5)
    (gradient,) = torch.autograd.grad(found.loss, logits)
    assert gradient.norm().item() == pytest.approx(case["ref_grad_norm"], abs=1e-5)


def test_the_recorded_cases_cover_every_way_of_combining_and_weighing() -> None:
    used = [case for case in CASES if gives_every_row(case)]
    for field, values in (
        ("combine", set(KINDS)),
        ("type", {"hard", "hard_and_decay", "soft"}),
        ("loss_type", {"ce", "kl"}),
    ):
        assert {case[field] for case in used} == values


def test_recorded_extraction_is_recomputed_through_the_pipelines_reduction() -> None:
    arrays = np.load(GOLDEN / "extract.npz")
    for number, case in enumerate(json.loads((GOLDEN / "extract.json").read_text(encoding="utf-8"))):
        logits = torch.from_numpy(arrays[f"e{number}_model_logits"])
        for d, ids in enumerate(case["input_ids"]):
            labels = torch.tensor([*ids[1:], -1])
            mode = ReferenceTopK(k=case["top_k"])
            dist, nll = reduce_logits(logits[d, : len(ids)], labels, mode, case["vocab_size"])
            recorded = torch.from_numpy(arrays[f"e{number}_topk_logits"])[d, : len(ids)].bfloat16().double()
            found = dist.logprobs.view(len(ids), -1)
            torch.testing.assert_close(found.log_softmax(1), recorded.log_softmax(1), rtol=0, atol=1e-13)
            mean = mean_nll(nll, torch.tensor([0, len(ids)]))
            expected = torch.from_numpy(arrays[f"e{number}_metric_ce"])[d : d + 1]
            assert torch.equal(mean, expected) or (mean.isnan().all() and expected.isnan().all())


def draw_logits(rows: int = 200, vocab: int = 50) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0)) * 4 + 12


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
def test_kept_logits_are_those_of_the_original_rounded_twice_and_mass_is_conserved(temperature: float) -> None:
    logits, k = draw_logits(), 10
    dist = ReferenceTopK(k=k, temperature=temperature)(logits, 50)
    kept = extract(logits[None], torch.zeros(1, len(logits), dtype=torch.long), torch.ones(1, len(logits)).long(), k)
    assert torch.equal(dist.ids.view(-1, k), kept.ids[0])
    expected = (kept.logits[0].bfloat16() / temperature).softmax(1)
    shifted = dist.logprobs.view(-1, k)
    found = (shifted - shifted.amax(1, keepdim=True)).float().softmax(1).bfloat16()
    assert torch.equal(found, expected)
    mass = dist.logprobs.view(-1, k).exp().sum(1) + dist.tail_logprob.exp()
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=1e-12)


def test_padded_ids_are_never_kept() -> None:
    assert int(ReferenceTopK(k=10)(draw_logits(), 20).ids.max()) < 20


def test_mean_nll_is_the_originals_of_each_document() -> None:
    lengths = [1, 7, 40, 2]
    logits, offsets = draw_logits(sum(lengths)), torch.tensor([0, *lengths]).cumsum(0)
    ids = torch.randint(50, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    labels = ids.roll(-1)
    labels[offsets[1:] - 1] = -1
    nll = reduce_logits(logits, labels, ReferenceTopK(), 50)[1]
    for d, found in enumerate(mean_nll(nll, offsets)):
        rows = slice(int(offsets[d]), int(offsets[d + 1]))
        mask = torch.ones(1, lengths[d], dtype=torch.long)
        expected = extract(logits[None, rows], ids[None, rows], mask, 1).cross_entropy[0]
        assert torch.equal(found, expected) or (found.isnan() and lengths[d] == 1)


def candidate_of(cross_entropy: list[float], lengths: list[int], seed: int = 0) -> Aligned:
    dist = TopK(k=3)(draw_logits(sum(lengths)).roll(seed, 1), 50)
    none = torch.full((sum(lengths),), torch.nan)
    return Aligned(dist, none, torch.zeros(len(none), dtype=torch.long), torch.tensor(cross_entropy))


def tokens_of(lengths: list[int]) -> Tokens:
    ids = torch.arange(sum(lengths))
    return Tokens(ids, torch.full_like(ids, NO_BOUNDARY), torch.tensor([0, *lengths]).cumsum(0))


@pytest.mark.parametrize(("base_teaches", "winner"), [(True, 0), (False, 2)])
def test_costs_that_bf16_cannot_tell_apart_tie(base_teaches: bool, winner: int) -> None:
    close = [candidate_of([cost], [4], seed) for seed, cost in enumerate((2.005, 2.0, 2.004))]
    fused = ReferenceMinCE(base_teaches=base_teaches)(close, tokens_of([4]))
    assert fused.winner.tolist() == [winner] * 4


def test_a_document_that_a_model_could_not_read_is_taught_by_the_others_or_nobody() -> None:
    nan = float("nan")
    candidates = [candidate_of([nan, nan, 1.0], [2, 2, 2]), candidate_of([9.0, nan, 2.0], [2, 2, 2], seed=1)]
    for kind in KINDS.values():
        strategy = TypeAdapter[Any](FusionStrategy).validate_python({"kind": kind, "trust": "reward"})
        fused = strategy(candidates, tokens_of([2, 2, 2]))
        assert fused.winner.tolist() == [1, 1, -1, -1, 0, 0]
        assert fused.dist.present.tolist() == [True, True, False, False, True, True]
        assert fused.dist.logprobs.isfinite().all()


def test_no_rows_give_no_rows() -> None:
    assert ReferenceMinCE()([candidate_of([], [])], tokens_of([])).dist.num_rows == 0
