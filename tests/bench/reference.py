"""The original's collator in its own arithmetic: three models' kept logits become targets, sparse against dense."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fusion_core.reference import collate_targets
from tests.bench.rows import Action, Row, measure_peak, race

_MODELS, _TOKENS, _KEPT, _VOCAB = 3, 2048, 10, 32_000


def rows() -> Iterator[Row]:
    """One block of 2048 tokens. The target is what the original's collator took for three models of this vocabulary."""
    seconds, twin_seconds = race(prepare(), prepare_dense(), repeats=3)
    name = f"collate targets, {_MODELS} models, T {_TOKENS}, V {_VOCAB}"
    yield Row(name, seconds, "dense, position by position", twin_seconds, measure_peak(prepare), "<= 0.81 s, <= 1 x")


def prepare(tokens: int = _TOKENS) -> Action:
    """Ours, on random candidates in bf16."""
    ids, logits = _draw(tokens)
    lengths = torch.tensor([tokens])

    def collate() -> list[Tensor]:
        pairs = zip(ids, logits, strict=True)
        return [collate_targets(i[None], kept[None], lengths, pad_id=0).probs for i, kept in pairs]

    return collate


def prepare_dense(tokens: int = _TOKENS) -> Action:
    """The definition: a whole vocabulary of logits per position, -inf but for the candidates, and its softmax."""
    ids, logits = _draw(tokens)

    def collate() -> list[Tensor]:
        return [torch.stack(list(map(_spread, i, kept))) for i, kept in zip(ids, logits, strict=True)]

    return collate


def _spread(ids: Tensor, logits: Tensor) -> Tensor:
    dense = torch.full((_VOCAB,), -torch.inf, dtype=torch.bfloat16)
    return dense.scatter_(0, ids, logits.bfloat16()).softmax(0)


def _draw(tokens: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(_VOCAB, (_MODELS, tokens, 1), generator=generator)
    ids = (first + torch.arange(_KEPT) * (_VOCAB // _KEPT)) % _VOCAB
    return ids, torch.randn(_MODELS, tokens, _KEPT, generator=generator)
