"""How well a model predicts a text, in a unit that no tokenizer changes, and how sure that number is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK_ELEMENTS = 2**22  # document draws held at a time: 32 MiB


@dataclass(frozen=True)
class Interval:
    """An estimate on the documents themselves and its 95 % percentile interval over resampled ones."""

    estimate: float
    low: float
    high: float


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
