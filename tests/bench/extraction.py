"""Reducing logits to the kept candidates, against the log-softmax of all logits in fp32 and its ten largest."""

from collections.abc import Iterator
from functools import partial

import torch

from fusion_core.distributions import TopK, reduce_logits
from tests.bench.rows import Action, Row, measure_peak, race

_ROWS, _KEPT = 2048, 10


def rows() -> Iterator[Row]:
    """One row per vocabulary: 2048 rows of bf16 logits, k = 10, with the labels' nll."""
    for vocab in (32_000, 152_000):
        ours, twin = partial(_prepare_ours, vocab), partial(_prepare_twin, vocab)
        peak, twin_peak = measure_peak(ours), measure_peak(twin)
        seconds, twin_seconds = race(ours(), twin(), repeats=3)
        name = f"full fp32 log_softmax and topk, {twin_peak:.0f} MiB"
        target = f"<= {twin_peak / 2:.0f} MiB (half)"
        yield Row(f"reduce logits, T {_ROWS}, V {vocab}, k {_KEPT}", seconds, name, twin_seconds, peak, target)


def _prepare_ours(vocab: int) -> Action:
    logits, labels = _draw(vocab)
    return partial(reduce_logits, logits, labels, TopK(k=_KEPT), vocab)


def _prepare_twin(vocab: int) -> Action:
    logits, labels = _draw(vocab)

    def reduce() -> None:
        logprobs = logits.float().log_softmax(1)
        logprobs.topk(_KEPT, 1)
        logprobs.gather(1, labels.unsqueeze(1))

    return reduce


def _draw(vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(_ROWS, vocab, generator=generator, dtype=torch.bfloat16).mul_(3)
    return logits, torch.randint(vocab, (_ROWS,), generator=generator)
