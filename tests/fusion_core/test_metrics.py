"""Bits per byte and its bootstrap intervals."""

import math

import numpy as np
import pytest

from fusion_core.metrics import (
    Interval,
    bits_per_byte,
    bootstrap_interval,
    measure_calibration,
    paired_bootstrap,
    paired_difference,
    share_interval,
)

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


# ---- calibration ---------------------------------------------------------------------------------------


def draw_predictions(count: int = 500, seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    confidence = generator.beta(2, 3, count)
    confidence[:6] = [0.0, 1.0, 1 / 15, 2 / 15, 0.2, 1e-12]  # ends and edges of bins
    return confidence, generator.random(count) < confidence**2, generator.exponential(2, count)


def test_calibration_error_is_that_of_a_loop_over_bins() -> None:
    confidence, correct, nll = draw_predictions()
    found = measure_calibration(confidence, correct, nll)
    error = 0.0
    for i in range(15):
        rows = [j for j, c in enumerate(confidence) if (i < c * 15 <= i + 1) or (i == 0 and c == 0)]
        if rows:
            accuracy = sum(bool(correct[j]) for j in rows) / len(rows)
            mean = sum(confidence[j] for j in rows) / len(rows)
            error += len(rows) / len(confidence) * abs(accuracy - mean)
    assert found.error == pytest.approx(error, rel=1e-12)
    assert found.tokens == len(confidence)
    assert found.accuracy == pytest.approx(correct.mean())
    assert found.mean_confidence == pytest.approx(confidence.mean())
    assert found.nats_per_token == pytest.approx(nll.mean())


def test_calibrations_of_parts_add_up_to_that_of_the_whole() -> None:
    predictions = draw_predictions()
    whole = measure_calibration(*predictions)
    first, rest = (
        measure_calibration(*(column[part] for column in predictions)) for part in (slice(99), slice(99, None))
    )
    together = first + rest
    assert together.counts == whole.counts
    assert together.correct == whole.correct
    assert together.error == pytest.approx(whole.error, rel=1e-12)
    with pytest.raises(ValueError, match="found 15 and 10"):
        whole + measure_calibration(*predictions, bins=10)


def test_a_model_that_is_as_right_as_it_is_sure_has_no_error() -> None:
    correct = np.repeat([1, 0, 1, 0], [3, 1, 1, 3])
    confidence = np.repeat([0.75, 0.25], 4)
    assert measure_calibration(confidence, correct, np.ones(8)).error == pytest.approx(0)
    assert measure_calibration(np.ones(4), np.zeros(4), np.ones(4)).error == pytest.approx(1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_certainty_rounded_past_one_is_certainty(dtype: type) -> None:
    assert measure_calibration(np.array([1 + 1e-7], dtype), [1], [0.0]).counts[-1] == 1


@pytest.mark.parametrize(
    ("confidence", "correct", "words"),
    [
        ([], [], "at least 1 token"),
        ([0.5], [1, 0], "at least 1 token"),
        ([1.5], [1], "found 1.5"),
        ([math.nan], [1], "nan"),
    ],
)
def test_predictions_that_are_none_are_refused(confidence: list[float], correct: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        measure_calibration(confidence, correct, np.zeros(len(confidence)))


# ---- shares and differences ----------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "count"), [(0, 40), (3, 10), (40, 40), (500, 1000)])
def test_ends_of_a_shares_interval_are_where_the_normal_test_just_accepts(right: int, count: int) -> None:
    share = right / count
    interval = share_interval(share, count)
    for end in (interval.low, interval.high):
        if end not in (0.0, 1.0):
            assert abs(share - end) / math.sqrt(end * (1 - end) / count) == pytest.approx(1.959964, rel=1e-6)
    assert 0 <= interval.low <= share <= interval.high <= 1
    with pytest.raises(ValueError, match=r"found 0\.5 of 0"):
        share_interval(0.5, 0)


def test_a_difference_is_that_of_the_means_and_pairs_cancel() -> None:
    generator = np.random.default_rng(1)
    a, noise = generator.random(60), generator.random(60)
    interval = paired_difference(a + 0.1, a)
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((0.1, 0.1, 0.1))
    apart = paired_difference(a, noise, resamples=500, seed=4)
    draws = np.random.default_rng(4).integers(0, 60, size=(500, 60))
    low, high = np.percentile([(a - noise)[row].mean() for row in draws], [2.5, 97.5])
    assert (apart.low, apart.high) == pytest.approx((low, high))
    with pytest.raises(ValueError, match=r"found \(2,\) and \(1,\)"):
        paired_difference([1, 2], [1])
    with pytest.raises(ValueError, match="found 1 items without"):
        paired_difference([1, math.nan], [1, 1])
