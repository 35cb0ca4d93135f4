"""How well a model predicts a text, in a unit that no tokenizer changes, and how sure that number is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_NORMAL_95 = 1.959964  # half-width of a 95 % interval, in standard errors
_BLOCK_ELEMENTS = 2**22  # document draws held at a time: 32 MiB


@dataclass(frozen=True)
class Interval:
    """An estimate on the documents themselves and its 95 % percentile interval over resampled ones."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """How sure a model was of its likeliest token and how often it was right, in bins of equal width.

    Bin `i` of `n` holds confidences in `(i/n, (i+1)/n]`, the first one 0 too. Sums add, so shards do.

    counts: tokens per bin. confidence, correct: sums per bin of the likeliest token's probability and of hits.
    nll: nats over all tokens.
    """

    counts: tuple[int, ...]
    confidence: tuple[float, ...]
    correct: tuple[int, ...]
    nll: float

    def __add__(self, other: "Calibration") -> "Calibration":
        """Both together. Raises ValueError for another number of bins."""
        if len(self.counts) != len(other.counts):
            raise ValueError(
                f"expected equal bins, found {len(self.counts)} and {len(other.counts)}; measure both alike"
            )
        return Calibration(
            tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            tuple(a + b for a, b in zip(self.confidence, other.confidence, strict=True)),
            tuple(a + b for a, b in zip(self.correct, other.correct, strict=True)),
            self.nll + other.nll,
        )

    @property
    def tokens(self) -> int:
        """How many tokens were predicted."""
        return sum(self.counts)

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1: mean |accuracy - confidence| of a token's bin (Guo et al. 2017)."""
        gaps = (abs(right - sure) for right, sure in zip(self.correct, self.confidence, strict=True))
        return sum(gaps) / self.tokens

    @property
    def accuracy(self) -> float:
        """Share of tokens that were the likeliest one."""
        return sum(self.correct) / self.tokens

    @property
    def mean_confidence(self) -> float:
        """Mean probability of the likeliest token: above the accuracy, the model is too sure of itself."""
        return sum(self.confidence) / self.tokens

    @property
    def nats_per_token(self) -> float:
        """Mean nll; comparable between models of one tokenizer only."""
        return self.nll / self.tokens


def measure_calibration(confidence: ArrayLike, correct: ArrayLike, nll: ArrayLike, *, bins: int = 15) -> Calibration:
    """The calibration of predictions: of each, its likeliest token's probability, whether that was right, its nats.

    Raises ValueError for lengths that differ, no prediction, or confidences outside 0 to 1.
    """
    sure, right, costs = (np.asarray(a, dtype=np.float64) for a in (confidence, correct, nll))
    if sure.ndim != 1 or not sure.shape == right.shape == costs.shape or not sure.size:
        raise ValueError(
            f"expected one confidence, hit and nll for each of at least 1 token, found {sure.shape}, {right.shape} and "
            f"{costs.shape}; pass all per token"
        )
    if not ((sure >= 0) & (sure <= 1 + 1e-6)).all():
        raise ValueError(f"expected confidences from 0 to 1, found {sure.min()} to {sure.max()}; pass probabilities")
    bin_of = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    counts, hits = np.bincount(bin_of, minlength=bins), np.bincount(bin_of, right, bins)
    sums = np.bincount(bin_of, sure, bins)
    return Calibration(tuple(counts.tolist()), tuple(sums.tolist()), tuple(map(int, hits)), float(costs.sum()))


def share_interval(share: float, count: int) -> Interval:
    """The 95 % interval of a share of `count` yes-or-no answers (Wilson 1927): never empty, never outside 0 to 1.

    Raises ValueError for no answers or a share outside 0 to 1.
    """
    if count < 1 or not 0 <= share <= 1:
        raise ValueError(f"expected a share from 0 to 1 of at least 1 answer, found {share} of {count}")
    z2 = _NORMAL_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _NORMAL_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def paired_difference(a: ArrayLike, b: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """The difference of two means, a - b, over the same items, with its interval over resampled items.

    Raises ValueError for lengths that differ, no items, or values that aren't finite.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ValueError(f"expected two values for each of at least 1 item, found {first.shape} and {second.shape}")
    difference = first - second
    if not np.isfinite(difference).all():
        raise ValueError(f"expected finite values, found {int((~np.isfinite(difference)).sum())} items without")
    sums = _resample_sums(difference[None], resamples, np.random.default_rng(seed))[0]
    return _percentiles(np.concatenate([[difference.sum()], sums]) / difference.size)


def bits_per_byte(nll_sum: float, num_bytes: int) -> float:
    """Bits per UTF-8 byte that a text costs: `nll_sum`, in nats over all of it, / (ln 2 x bytes).

    Raises ValueError for a text without bytes.
    """
    if num_bytes < 1:
        raise ValueError(f"expected a text of at least 1 byte, found {num_bytes}; leave empty documents out")
    return nll_sum / (math.log(2) * num_bytes)


def bootstrap_interval(
    nll: ArrayLike, num_bytes: ArrayLike, domains: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """The mean over domains of one model's bits per byte, with its interval.

    nll, num_bytes, domains: per document, nats, bytes and the name of its domain. A domain's bits per byte
    are the ratio of its sums; each domain counts the same. Documents are drawn with replacement within
    their domain (Efron and Tibshirani 1993, chapter 6). The seed decides the draws.
    Raises ValueError for lengths that differ, no documents, documents without bytes, or an nll not finite.
    """
    scores = _resample_scores([nll], num_bytes, domains, resamples, seed)
    return _percentiles(scores[0])


def paired_bootstrap(
    nll_a: ArrayLike,
    nll_b: ArrayLike,
    num_bytes: ArrayLike,
    domains: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The relative difference (a - b) / b of two models' bits per byte; below zero, `a` is the better one.

    Both models are scored on the same draws of documents, so what makes a document hard for both cancels.
    Everything else is as in `bootstrap_interval`.
    """
    a, b = _resample_scores([nll_a, nll_b], num_bytes, domains, resamples, seed)
    return _percentiles((a - b) / b)


def _resample_scores(
    nlls: Sequence[ArrayLike], num_bytes: ArrayLike, domains: Sequence[str], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Mean-over-domains bits per byte [models, 1 + resamples]; the first is that of the documents themselves."""
    values = _stack_documents(nlls, num_bytes, len(domains))
    if resamples < 1:
        raise ValueError(f"expected at least 1 resample, found {resamples}; 2000 are usual")
    generator = np.random.default_rng(seed)
    names, domain_of = np.unique(np.asarray(domains), return_inverse=True)
    scores = np.zeros((len(nlls), 1 + resamples))
    for domain in range(len(names)):
        documents = values[:, domain_of == domain]
        sums = np.concatenate([documents.sum(1, keepdims=True), _resample_sums(documents, resamples, generator)], 1)
        scores += sums[:-1] / (math.log(2) * sums[-1])
    return scores / len(names)


def _resample_sums(
    documents: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Sums [values, resamples] over as many documents as there are, drawn with replacement."""
    count = documents.shape[1]
    block = max(1, _BLOCK_ELEMENTS // count)
    sums = []
    for start in range(0, resamples, block):
        drawn = generator.integers(0, count, size=(min(block, resamples - start), count))
        sums.append(np.stack([row[drawn].sum(1) for row in documents]))
    return np.concatenate(sums, 1)


def _percentiles(scores: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(scores[1:], [2.5, 97.5])
    return Interval(estimate=float(scores[0]), low=float(low), high=float(high))


def _stack_documents(nlls: Sequence[ArrayLike], num_bytes: ArrayLike, count: int) -> NDArray[np.float64]:
    """The nlls and then the bytes, [models + 1, documents]."""
    columns = [np.asarray(column, dtype=np.float64) for column in [*nlls, num_bytes]]
    shapes = [column.shape for column in columns]
    if count == 0 or any(shape != (count,) for shape in shapes):
        raise ValueError(
            f"expected one value for each of {count} (at least 1) documents, found {shapes}; pass all per document"
        )
    values = np.stack(columns)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values).all(0)).sum())
        raise ValueError(
            f"expected finite nlls, found {bad} of {count} documents without; leave them out of both models"
        )
    if (values[-1] < 1).any():
        bad = int((values[-1] < 1).sum())
        raise ValueError(f"expected documents of at least 1 byte, found {bad} of {count} without; leave them out")
    return values
