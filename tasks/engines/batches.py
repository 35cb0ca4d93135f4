"""Documents side by side: which share a batch, and how they lie in it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def plan_batches(documents: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """The documents in batches of similar lengths, at most `batch_tokens` padded tokens each, or one document.

    Shorter ones first, of equal ones the earlier. lengths: tokens of every document, by its number.
    """
    batch: list[int] = []
    for document in sorted(documents, key=lambda d: (lengths[d], d)):  # rising: the newest document is the longest
        if batch and (len(batch) + 1) * lengths[document] > batch_tokens:
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch


def pad_batch(sequences: list[Tensor], padding: int) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), [batch, longest]; padded on the right."""
    longest = max(len(ids) for ids in sequences)
    padded = torch.full((len(sequences), longest), padding, dtype=torch.long)
    mask = torch.zeros((len(sequences), longest), dtype=torch.long)
    for row, ids in enumerate(sequences):
        padded[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
    return padded, mask
