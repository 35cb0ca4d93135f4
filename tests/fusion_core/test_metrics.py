"""Bits per byte and its bootstrap intervals."""

import math

import numpy as np
import pytest

from fusion_core.metrics import Interval, bits_per_byte, bootstrap_interval, paired_bootstrap

DOMAINS = ["code"] * 30 + ["prose"] * 50


def draw(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    num_bytes = generator.integers(20, 400, len(DOMAINS))
    return num_bytes * generator.gamma(20, 0.05, len(DOMAINS)), num_bytes


def define(nll: np.ndarray, num_bytes: np.ndarray, domains: list[str]) -> float:
    scores = []
    for name in sorted(set(domains)):
        mine = [i for i, domain in enumerate(domains) if domain == name]
        scores.append(sum(nll[i] for i in mine) / (math.log(2) * sum(num_bytes[i] for i in mine)))
    return sum(scores) / len(scores)


def test_a_uniform_guess_of_bytes_costs_eight_bits() -> None:
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8)
    with pytest.raises(ValueError, match="found 0"):
        bits_per_byte(1.0, 0)


def test_estimate_is_the_mean_over_domains_of_ratios_of_sums() -> None:
    nll, num_bytes = draw()
    interval = bootstrap_interval(nll, num_bytes, DOMAINS)
    assert interval.estimate == pytest.approx(define(nll, num_bytes, DOMAINS), rel=1e-12)
    assert interval.low < interval.estimate < interval.high


def test_relative_difference_is_of_the_means() -> None:
    (nll_a, num_bytes), (nll_b, _) = draw(0), draw(1)
    expected = define(nll_a, num_bytes, DOMAINS) / define(nll_b, num_bytes, DOMAINS) - 1
    assert paired_bootstrap(nll_a, nll_b, num_bytes, DOMAINS).estimate == pytest.approx(expected, rel=1e-9)


def test_a_constant_factor_leaves_no_doubt() -> None:
    nll, num_bytes = draw()
    interval = paired_bootstrap(0.9 * nll, nll, num_bytes, DOMAINS)
    assert (interval.low, interval.high) == pytest.approx((-0.1, -0.1), abs=1e-12)


def test_interval_is_that_of_a_loop_over_the_same_draws() -> None:
    nll, num_bytes = draw()
    nll, num_bytes = nll[:30], num_bytes[:30]
    drawn = np.random.default_rng(5).integers(0, 30, size=(400, 30))
    scores = [nll[row].sum() / (math.log(2) * num_bytes[row].sum()) for row in drawn]
    low, high = np.percentile(scores, [2.5, 97.5])
    interval = bootstrap_interval(nll, num_bytes, DOMAINS[:30], resamples=400, seed=5)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-12)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    num_bytes = np.full(60, 100)
    hits = 0
    for trial in range(200):
        interval = bootstrap_interval(generator.gamma(20, 5.0, 60), num_bytes, ["one"] * 60, resamples=300, seed=trial)
        hits += interval.low <= 1 / math.log(2) <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_the_seed_decides_and_nothing_else() -> None:
    nll, num_bytes = draw()
    first = bootstrap_interval(nll, num_bytes, DOMAINS, seed=3)
    assert bootstrap_interval(nll, num_bytes, DOMAINS, seed=3) == first
    assert bootstrap_interval(nll, num_bytes, DOMAINS, seed=4) != first


def test_one_document_has_an_interval_without_width() -> None:
    assert bootstrap_interval([math.log(2) * 10], [10], ["one"]) == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("nll", "num_bytes", "domains", "message"),
    [
        ([1.0, 2.0], [1, 2], ["a"], "each of 1"),
        ([], [], [], "at least 1"),
        ([1.0, math.nan], [1, 2], ["a", "a"], "1 of 2 documents"),
        ([1.0, 2.0], [1, 0], ["a", "a"], "1 of 2 without"),
    ],
)
def test_documents_that_cannot_be_scored_are_refused(
    nll: list[float], num_bytes: list[int], domains: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(nll, num_bytes, domains)


def test_no_resamples_are_refused() -> None:
    with pytest.raises(ValueError, match="found 0"):
        bootstrap_interval([1.0], [1], ["a"], resamples=0)
