"""Mixtures over bytes, against their definition by loops."""

import math

import pytest
import torch

from fusion_core.distributions import absent_rows
from fusion_core.ensembles import ensemble_nats
from fusion_core.types import NO_BOUNDARY, Scored, Tokens

SIZES = torch.tensor([6, 4])


def reading(ends: list[list[int]], costs: list[list[float]], end_token: bool = False) -> Scored:
    """A model whose documents have tokens that end there (after a begin token) and cost that much, in nats."""
    boundaries, nll, offsets = [], [], [0]
    for stops, spent in zip(ends, costs, strict=True):
        boundaries += [0, *stops, *([NO_BOUNDARY] if end_token else [])]
        nll += [*spent, *([9.0] if end_token else []), math.nan]
        offsets.append(len(boundaries))
    tokens = Tokens(torch.zeros(len(boundaries), dtype=torch.int64), torch.tensor(boundaries), torch.tensor(offsets))
    return Scored(tokens, absent_rows(len(boundaries), 5), torch.tensor(nll))


def last_rows(scored: Scored, end_token: bool = False) -> torch.Tensor:
    return scored.tokens.doc_offsets[1:] - (2 if end_token else 1)


FINE = reading([[1, 2, 4, 6], [1, 2, 3, 4]], [[1.0, 0.5, 0.25, 2.0], [0.1, 0.2, 0.3, 0.4]])
COARSE = reading([[2, 3, 6], [3, 4]], [[0.7, 0.9, 1.1], [2.5, 0.6]], end_token=True)


def both(weighting: str) -> list[float]:
    lasts = [last_rows(FINE), last_rows(COARSE, end_token=True)]
    return ensemble_nats([FINE, COARSE], lasts, SIZES, weighting).tolist()  # type: ignore[arg-type]


def mixed(a: float, b: float) -> float:
    return -math.log((math.exp(-a) + math.exp(-b)) / 2)


def test_equal_weights_average_probabilities_between_shared_boundaries() -> None:
    # shared: 0, 2, 6 and 0, 3, 4
    expected = [mixed(1.5, 0.7) + mixed(2.25, 2.0), mixed(0.6, 2.5) + mixed(0.4, 0.6)]
    assert both("equal") == pytest.approx(expected, rel=1e-6)


def test_earned_weights_are_those_of_the_bytes_before() -> None:
    assert both("earned") == pytest.approx([mixed(3.75, 2.7), mixed(1.0, 3.1)], rel=1e-6)
    first, second = 1.5, 0.7  # of the first document up to byte 2, then from there
    weights = [math.exp(-first), math.exp(-second)]
    later = -math.log((weights[0] * math.exp(-2.25) + weights[1] * math.exp(-2.0)) / sum(weights))
    assert both("earned")[0] == pytest.approx(mixed(first, second) + later, rel=1e-6)


@pytest.mark.parametrize("weighting", ["equal", "earned"])
def test_one_model_alone_costs_what_it_costs(weighting: str) -> None:
    found = ensemble_nats([COARSE], [last_rows(COARSE, end_token=True)], SIZES, weighting)  # type: ignore[arg-type]
    assert found.tolist() == pytest.approx([2.7, 3.1], rel=1e-6)


@pytest.mark.parametrize("weighting", ["equal", "earned"])
def test_it_is_never_dearer_than_the_best_model_by_more_than_the_choice_of_it(weighting: str) -> None:
    spans = [2, 2] if weighting == "equal" else [1, 1]
    for cost, best, times in zip(both(weighting), [2.7, 1.0], spans, strict=True):
        assert cost <= best + times * math.log(2) + 1e-6


def test_order_of_models_does_not_matter() -> None:
    lasts = [last_rows(COARSE, end_token=True), last_rows(FINE)]
    assert ensemble_nats([COARSE, FINE], lasts, SIZES).tolist() == pytest.approx(both("equal"))


def test_readings_of_other_documents_are_refused() -> None:
    one = reading([[4]], [[1.0]])
    with pytest.raises(ValueError, match="read 2 documents, found 2 models"):
        ensemble_nats([FINE, one], [last_rows(FINE), last_rows(one)], SIZES)
    with pytest.raises(ValueError, match="at least 1 model"):
        ensemble_nats([], [], SIZES)
