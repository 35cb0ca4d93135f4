"""Which sequences every step learns from, cut into passes through devices, and the tensors of a pass.

The plan of steps depends on the number of sequences and the recipe alone. Processes, gradient accumulation and
packing only cut and lay out the sequences of a step, so they change nothing but rounding.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion_core.distributions import absent_rows, concatenate, take_rows
from fusion_core.objective import IGNORED_LABEL
from fusion_core.types import TokenDist
from tasks.training.spec import TrainingSpec


@dataclass(frozen=True)
class Plan:
    """The sequences of every step. Each epoch is a permutation of its own; the last step of an epoch may be short."""

    num_sequences: int
    batch_sequences: int
    epochs: float
    seed: int

    @classmethod
    def of(cls, spec: TrainingSpec, num_sequences: int) -> "Plan":
        """The plan that a recipe means. Raises `ValueError` without any sequence."""
        if not num_sequences:
            raise ValueError(
                "training: expected at least one sequence of two tokens, found none; give the corpus longer texts"
            )
        return cls(num_sequences, spec.batch_sequences, spec.epochs, spec.seed)

    @property
    def epoch_steps(self) -> int:
        """Steps of one epoch."""
        return -(-self.num_sequences // self.batch_sequences)

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""
        return math.ceil(self.epochs * self.epoch_steps)

    def step(self, number: int) -> list[int]:
        """The sequences of a step, the first step being 0."""
        epoch, place = divmod(number, self.epoch_steps)
        order = _permutation(self.num_sequences, self.seed + epoch)
        return order[place * self.batch_sequences : (place + 1) * self.batch_sequences].tolist()  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=2)
def _permutation(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Passes:
    """The sequences of every pass of one process: `accumulation` passes a step, the last ones maybe empty."""

    plan: Plan
    processes: int = 1
    rank: int = 0
    micro_batch: int | None = None

    @property
    def size(self) -> int:
        """The most sequences of a pass."""
        share = -(-min(self.plan.batch_sequences, self.plan.num_sequences) // self.processes)
        return min(share, self.micro_batch or share)

    @property
    def accumulation(self) -> int:
        """Passes per step."""
        largest = min(self.plan.batch_sequences, self.plan.num_sequences)
        return -(-largest // (self.size * self.processes))

    def __len__(self) -> int:
        return self.plan.num_steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.plan.num_steps):
            sequences = self.plan.step(number)
            for turn in range(self.accumulation):
                start = (turn * self.processes + self.rank) * self.size
                yield sequences[start : start + self.size]


@dataclass(frozen=True)
class Example:
    """One sequence and its teacher, one row per token; None for plain language modelling.

    mark: 63 bits that tell the sequence's tokens from others, for the digest of batches.
    is_learned: bool per token, whether it is a label; rows of other labels are not scored.
    """

    number: int
    ids: Tensor
    teacher: TokenDist | None
    mark: int
    is_learned: Tensor


@dataclass(frozen=True)
class Collator:
    """Makes the tensors of a pass.

    input_ids and attention_mask [rows, width], position_ids in place of the mask where rows are packed;
    kept [rows, width]: the tokens whose next-token distribution is scored; labels [kept] and teacher, a row per
    kept token; marks and numbers [sequences]; num_tokens, an int.
    """

    vocab_size: int
    every_token: bool = False  # score the last token of a sequence too, which has no label
    packing: int | None = None

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:  # Any: what the Trainer hands on
        """The tensors. Raises `ValueError` for a sequence longer than a packed row."""
        rows = (
            _lay_out([len(e.ids) for e in examples], self.packing)
            if self.packing
            else [[i] for i in range(len(examples))]
        )
        laid = [examples[i] for row in rows for i in row]
        width = max((sum(len(examples[i].ids) for i in row) for row in rows), default=1)
        ids = torch.zeros((max(len(rows), 1), width), dtype=torch.long)
        labels, position = torch.full_like(ids, IGNORED_LABEL), torch.zeros_like(ids)
        is_token = torch.zeros_like(ids, dtype=torch.bool)
        kept = torch.zeros_like(is_token)
        for r, row in enumerate(rows):
            start = 0
            for i in row:
                stop = start + len(examples[i].ids)
                ids[r, start:stop] = examples[i].ids
                labels[r, start : stop - 1] = examples[i].ids[1:]
                kept[r, start : stop - 1] = examples[i].is_learned[1:]
                kept[r, stop - 1] = self.every_token and bool(examples[i].is_learned[-1])
                position[r, start:stop] = torch.arange(stop - start)
                is_token[r, start:stop] = True
                start = stop
        batch: dict[str, Any] = {"input_ids": ids, "kept": kept, "labels": labels[kept]}
        if self.packing:
            batch["position_ids"] = position  # of padding 0: a sequence of its own each
        else:
            batch["attention_mask"] = is_token.long() if examples else torch.ones_like(ids)
        batch["teacher"] = self._teacher(laid, kept[is_token])
        batch["num_tokens"] = int(is_token.sum())
        batch["marks"] = torch.tensor([e.mark for e in laid], dtype=torch.long)
        batch["numbers"] = torch.tensor([e.number for e in laid], dtype=torch.long)
        return batch

    def _teacher(self, laid: list[Example], kept: Tensor) -> TokenDist:
        known = [e.teacher for e in laid if e.teacher is not None]
        if not known:
            return absent_rows(int(kept.sum()), self.vocab_size)
        return take_rows(concatenate(known), kept.nonzero().squeeze(1))


def _lay_out(lengths: list[int], width: int) -> list[list[int]]:
    """The sequences of each row: each in the first row that has room for it."""
    longest = max(lengths, default=0)
    if longest > width:
        raise ValueError(
            f"runtime.training.packing: expected rows that hold the longest sequence, found {width} tokens for one of "
            f"{longest}; set it to {longest} or more, or lower corpus.max_bytes"
        )
    rows: list[list[int]] = []
    room: list[int] = []
    for number, length in enumerate(lengths):
        at = next((r for r, left in enumerate(room) if left >= length), len(rows))
        if at == len(rows):
            rows.append([])
            room.append(width)
        rows[at].append(number)
        room[at] -= length
    return rows
