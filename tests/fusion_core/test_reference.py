"""The original, number for number: by the recorded outputs, and by definitions in loops."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fusion_core.reference import (
    Batch,
    Objective,
    Targets,
    choose_targets,
    collate_targets,
    extract,
    mix_targets,
    pack,
    reward,
    split_long_text,
)
from tests.golden import extraction, losses, packing

GOLDEN = Path(__file__).parent / "golden"
CHECKS: dict[str, Callable[[Path], Any]] = {
    "loss_cases.json": losses.check,
    "extract.json": extraction.check,
    "packing.json": packing.check,
}
VOCAB = 9


@pytest.fixture
def unchecked_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def make_targets(*rows: dict[int, float], dtype: torch.dtype = torch.float64) -> Targets:
    """One sequence; a place of padding at the end of each row."""
    width = 1 + max(map(len, rows))
    ids = [[*row, *[0] * (width - len(row))] for row in rows]
    probs = [[*row.values(), *[0.0] * (width - len(row))] for row in rows]
    return Targets(torch.tensor([ids]), torch.tensor([probs], dtype=dtype))


def entries(targets: Targets, place: int, sequence: int = 0) -> dict[int, float]:
    ids, probs = targets.ids[sequence, place].tolist(), targets.probs[sequence, place].tolist()
    return {token: prob for token, prob in zip(ids, probs, strict=True) if prob > 0}


@pytest.mark.parametrize("name", CHECKS)
def test_the_recorded_outputs_are_recomputed(name: str) -> None:
    outcome = CHECKS[name](GOLDEN / name)
    assert (outcome.cases > 0, outcome.mismatches) == (True, 0)
    assert outcome.largest < 1e-12


def _nudge_loss(folder: Path) -> None:
    entries = json.loads((folder / "loss_cases.json").read_text())
    next(entry for entry in entries if "case" in entry)["f64_loss"] += 1e-11
    (folder / "loss_cases.json").write_text(json.dumps(entries))


def _nudge_target(folder: Path) -> None:
    arrays = dict(np.load(folder / "loss_arrays.npz"))
    arrays["b0_T1_ref_base_target_dist"][0, 0, 0] += 2.0**-10
    np.savez(folder / "loss_arrays.npz", **arrays)


def _nudge_logits(folder: Path) -> None:
    arrays = dict(np.load(folder / "extract.npz"))
    arrays["e0_topk_logits"][0, 3, 2] += 0.25
    np.savez(folder / "extract.npz", **arrays)


def _nudge_block(folder: Path) -> None:
    cases = json.loads((folder / "packing.json").read_text())
    cases[0]["output"]["metric_ce"][0] += 1e-15 * 8
    (folder / "packing.json").write_text(json.dumps(cases))


@pytest.mark.parametrize(
    ("name", "nudge"),
    [
        ("loss_cases.json", _nudge_loss),
        ("loss_cases.json", _nudge_target),
        ("extract.json", _nudge_logits),
        ("packing.json", _nudge_block),
    ],
)
def test_a_recorded_number_that_is_a_little_off_is_one_mismatch(
    name: str, nudge: Callable[[Path], None], tmp_path: Path
) -> None:
    for path in GOLDEN.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    nudge(tmp_path)
    assert CHECKS[name](tmp_path / name).mismatches == 1


def test_targets_are_the_softmax_of_the_kept_alone_and_the_first_of_equal_ids_counts() -> None:
    ids = torch.tensor([[[4, 2, 4], [7, 0, 0], [0, 0, 0], [1, 2, 3]]])
    logits = torch.tensor([[[2.0, 1.0, 9.0], [5.0, -math.inf, -math.inf], [-math.inf] * 3, [1.0, 1.0, 1.0]]])
    base = make_targets({1: 1.0}, {1: 1.0}, {3: 0.25, 8: 0.75}, {1: 1.0})
    for fallback, row in ((None, {}), (base, {3: 0.25, 8: 0.75})):
        found = collate_targets(
            ids, logits, torch.tensor([3]), pad_id=6, base=fallback, temperature=2.0, dtype=torch.float64
        )
        share = 1 / (1 + math.exp(-0.5))
        assert entries(found, 0) == pytest.approx({4: share, 2: 1 - share}, abs=1e-15)
        assert entries(found, 1) == {7: 1.0}
        assert entries(found, 2) == row
        assert entries(found, 3) == {6: 1.0}


def test_a_row_never_leaks_another_ones_ids_through_padding() -> None:
    ids, logits = torch.tensor([[[0, 3, 5]]]), torch.tensor([[[1.0, -math.inf, 2.0]]])
    found = collate_targets(ids, logits, torch.tensor([1]), pad_id=0, dtype=torch.float64)
    assert entries(found, 0) == pytest.approx({0: 1 / (1 + math.e), 5: math.e / (1 + math.e)})


def test_rewards_tie_in_half_precision_and_only_there() -> None:
    close = torch.tensor([[2.005, 2.000]], dtype=torch.float64)
    assert reward(close, torch.bfloat16).unique().numel() == 1
    assert reward(close, torch.float64).tolist() == [pytest.approx([math.exp(-2.005), math.exp(-2.0)])]


@pytest.mark.parametrize(
    ("rewards", "base_teaches", "winner"),
    [
        ([0.5, 0.5, 0.5], True, 0),
        ([0.1, 0.5, 0.5], True, 1),
        ([0.5, 0.5, 0.1], False, 1),
        ([0.5, 0.5, 0.5], False, 2),
        ([0.1, 0.2, 0.3], True, 2),
        ([0.6, 0.2, 0.3], False, 0),
    ],
)
def test_ties_go_to_the_base_or_else_to_the_last(rewards: list[float], base_teaches: bool, winner: int) -> None:
    targets = [make_targets({number: 1.0}) for number in range(3)]
    found = choose_targets(targets, torch.tensor([rewards], dtype=torch.float64), base_teaches=base_teaches)
    assert entries(found, 0) == {winner: 1.0}


def test_each_sequence_is_chosen_by_its_own_reward_whatever_the_widths() -> None:
    narrow = Targets(torch.tensor([[[1]], [[1]]]), torch.ones(2, 1, 1))
    wide = Targets(torch.tensor([[[2, 3]], [[2, 3]]]), torch.full((2, 1, 2), 0.5))
    found = choose_targets([narrow, wide], torch.tensor([[0.9, 0.1], [0.1, 0.9]]), base_teaches=True)
    assert entries(found, 0, 0) == {1: 1.0}
    assert entries(found, 0, 1) == {2: 0.5, 3: 0.5}


def test_the_mixture_is_the_dense_weighted_sum() -> None:
    dense = torch.rand(3, 2, 4, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dense = dense.masked_fill(dense < 0.6, 0.0)
    places = torch.arange(VOCAB).expand(2, 4, VOCAB)
    rewards = torch.tensor([[0.7, 0.1, 0.3], [0.2, 0.2, 0.9]], dtype=torch.float64)
    mixed = mix_targets([Targets(places, probs) for probs in dense], rewards)
    found = torch.zeros(2, 4, VOCAB, dtype=torch.float64).scatter_add_(2, mixed.ids, mixed.probs)
    weights = rewards.exp() / rewards.exp().sum(1, keepdim=True)
    expected = sum(weights[:, s, None, None] * dense[s] for s in range(3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


def test_the_weights_of_the_original_are_nearly_flat() -> None:
    weights = reward(torch.tensor([[0.5, 2.5, 4.0]], dtype=torch.float64), torch.float64).softmax(1)
    assert weights[0].tolist() == pytest.approx([0.47, 0.28, 0.26], abs=0.006)


def draw_batch(sequences: int = 2) -> tuple[torch.Tensor, Batch]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(sequences, 5, VOCAB, generator=generator, dtype=torch.float64)
    mask = torch.ones(sequences, 5, dtype=torch.int64)
    mask[-1, 3:] = 0
    labels = torch.randint(0, VOCAB, (sequences, 5), generator=generator).masked_fill(mask == 0, -100)
    probs = torch.rand(2, sequences, 5, VOCAB, generator=generator, dtype=torch.float64).softmax(-1)
    places = torch.arange(VOCAB).expand(sequences, 5, VOCAB)
    costs = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)[:sequences]
    return logits, Batch(labels, mask, (Targets(places, probs[0]), Targets(places, probs[1])), costs, True)


@pytest.mark.parametrize("combine", ["min_ce", "avg_ce"])
@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_the_loss_is_its_definition_in_loops(combine: Any, loss: Any) -> None:
    logits, batch = draw_batch()
    objective = Objective(combine=combine, loss=loss, weighting="hard_and_decay", lm_weight=0.6)
    found = float(objective(logits, batch, step=1, max_steps=4))
    student = logits.log_softmax(-1)
    text, labels, distance, tokens = 0.0, 0, 0.0, 0
    for sequence in range(2):
        gains = [math.exp(-float(cost)) for cost in batch.cross_entropy[sequence]]
        shares = [math.exp(gain) / sum(map(math.exp, gains)) for gain in gains]
        if combine == "min_ce":
            shares = [float(gain == max(gains)) for gain in gains]
        for i in range(5):
            if not batch.attention_mask[sequence, i]:
                continue
            tokens += 1
            if i + 1 < 5 and batch.labels[sequence, i + 1] >= 0:
                text -= float(student[sequence, i, batch.labels[sequence, i + 1]])
                labels += 1
            for token in range(VOCAB):
                p = sum(s * float(t.probs[sequence, i, token]) for s, t in zip(shares, batch.targets, strict=True))
                distance += p * ((math.log(p) if loss == "kl" else 0) - float(student[sequence, i, token]))
    weight = 0.6 + 0.4 * 1 / 4
    assert found == pytest.approx(weight * text / labels + (1 - weight) * distance / tokens, abs=1e-12)


def test_soft_weighting_goes_by_the_reward_and_takes_one_sequence() -> None:
    logits, batch = draw_batch(1)
    text, teacher = (float(Objective(lm_weight=weight)(logits, batch)) for weight in (1.0, 0.0))
    share = math.exp(-1.0)
    found = float(Objective(weighting="soft")(logits, batch))
    assert found == pytest.approx((1 - share) * text + share * teacher)
    with pytest.raises(ValueError, match="1 sequence, found 2"):
        Objective(weighting="soft")(*draw_batch())


def test_extraction_rounds_to_half_precision_first() -> None:
    logits = torch.tensor([[[1.0001, 1.0002, -3.0], [0.0, 5.0, 5.0], [0.0, 0.0, 0.0]]])
    labels = torch.tensor([[0, 1, -100]])
    found = extract(logits, labels, (labels >= 0).long(), 2)
    assert found.ids.tolist() == [[[0, 1], [1, 2], [0, 1]]]
    assert found.nll[0, 1] == 0
    assert found.cross_entropy[0] == found.nll[0, 0]
    one = torch.tensor([[2, -100, -100]])
    assert extract(logits, one, (one >= 0).long(), 1).cross_entropy.isnan().all()


def test_a_block_averages_the_metric_of_each_token() -> None:
    columns = {"input_ids": [[1, 2, 3], [4, 5]], "metric_ce": [1.0, 4.0]}
    assert pack(columns, 2) == {"input_ids": [[1, 2], [3, 4], [5]], "metric_ce": [1.0, 2.5, 4.0]}


def test_packing_by_token_fails_as_written_and_averages_when_mended() -> None:
    columns = {"input_ids": [[1, 2, 3]], "per_step_metric_ce": [[1.0, 2.0, 6.0]]}
    with pytest.raises(RuntimeError, match="dictionary changed size"):
        pack(columns, 2, metric_level="token")
    assert pack(columns, 2, metric_level="token", mended=True) == {"input_ids": [[1, 2], [3]], "metric_ce": [1.5, 6.0]}
    assert pack({"input_ids": [[1, 2, 3]]}, 2, metric_level="token") == {"input_ids": [[1, 2], [3]]}


class _Letters:
    """A tokenizer of `size` letters per token that forgets a space at the beginning of what it decodes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.known: list[str] = []

    def encode(self, text: str) -> list[int]:
        pieces = [text[i : i + self.size] for i in range(0, len(text), self.size)]
        self.known += pieces
        return list(range(len(self.known) - len(pieces), len(self.known)))

    def decode(self, ids: Any) -> str:
        return "".join(self.known[i] for i in ids).removeprefix(" ")


def test_a_long_text_is_cut_by_who_needs_most_tokens() -> None:
    assert split_long_text("ab cd", [_Letters(2), _Letters(1), _Letters(3)], 2) == ["ab", "c", "d"]
    assert split_long_text("ab cd", [_Letters(2), _Letters(3)], 3) == ["ab cd"]
    assert split_long_text("", [_Letters(1)], 1) == [""]


@pytest.mark.usefixtures("unchecked_shapes")
def test_input_that_does_not_fit_is_refused() -> None:
    ids, logits, lengths = torch.zeros(1, 2, 3, dtype=torch.int64), torch.zeros(1, 2, 3), torch.tensor([2])
    with pytest.raises(ValueError, match=r"found \(1, 2, 3\), \(1, 2\)"):
        collate_targets(ids, logits[..., 0], lengths, pad_id=0)
    with pytest.raises(ValueError, match="up to 2 positions, found 3"):
        collate_targets(ids, logits, lengths + 1, pad_id=0)
    with pytest.raises(ValueError, match=r"1\) targets, found rewards of shape"):
        choose_targets([make_targets({1: 1.0})], torch.ones(1, 2), base_teaches=True)
    with pytest.raises(ValueError, match=r"1\.\.3, .* found 4"):
        extract(logits, torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2), 4)
    with pytest.raises(ValueError, match="found 0 and 4"):
        pack({}, 4)
    with pytest.raises(ValueError, match="a block without any"):
        pack({"input_ids": [[1, 2]], "per_step_metric_ce": [[1.0]]}, 1, metric_level="token", mended=True)
    with pytest.raises(ValueError, match="found 0 and 5"):
        split_long_text("a", [], 5)
    with pytest.raises(ValidationError):
        Objective(lm_weight=2)
