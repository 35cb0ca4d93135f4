"""Greedy continuations: what a model writes by itself, the same for every batch size and every architecture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusion_core.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Continuation:
    """What followed a prompt. ended: with the end token, which is no part of the text, rather than by the limit."""

    text: str
    tokens: int
    ended: bool


@torch.inference_mode()
def continue_greedily(
    network: "PreTrainedModel",
    vocabulary: Vocabulary,
    prompts: Sequence[Tensor],
    max_tokens: int,
    *,
    batch_tokens: int,
    progress: Callable[[int, int, str], None] = lambda done, total, unit: None,
) -> list[Continuation]:
    """The likeliest next token again and again, for each prompt of ids, until the end token or `max_tokens`.

    Of equal logits the lower id wins. Only prompts of equal length share a batch: nothing is padded, so no
    architecture needs to know of padding. Bytes that aren't UTF-8 become U+FFFD.
    Raises ValueError for a prompt without tokens.
    """
    if any(len(ids) == 0 for ids in prompts):
        raise ValueError("expected prompts of at least 1 token, found an empty one; give it the begin token")
    found: dict[int, Continuation] = {}
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    for length, group in groupby(order, key=lambda i: len(prompts[i])):
        alike = list(group)
        size = max(1, batch_tokens // (length + max_tokens))
        for start in range(0, len(alike), size):
            batch = alike[start : start + size]
            ids = torch.stack([prompts[i] for i in batch]).to(network.device)
            for i, tokens in zip(batch, _extend(network, ids, vocabulary, max_tokens).tolist(), strict=True):
                found[i] = _read(tokens, vocabulary)
            progress(len(found), len(prompts), "continuations")
    return [found[i] for i in range(len(prompts))]


def _extend(network: "PreTrainedModel", ids: Tensor, vocabulary: Vocabulary, max_tokens: int) -> Tensor:
    """The ids [batch, at most max_tokens] that follow; what stands behind an end token means nothing."""
    end = vocabulary.roles.get("eos", -1)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    start, cache, new = ids.shape[1], None, ids
    while ids.shape[1] < start + max_tokens and not bool(ended.all()):
        output = network(input_ids=new, past_key_values=cache, use_cache=True)
        cache = getattr(output, "past_key_values", None)
        following = output.logits[:, -1, : vocabulary.size].argmax(-1, keepdim=True)
        ids = torch.cat([ids, following], 1)
        new = following if cache is not None else ids
        ended |= following[:, 0] == end
    return ids[:, start:]


def _read(tokens: list[int], vocabulary: Vocabulary) -> Continuation:
    end = vocabulary.roles.get("eos", -1)
    ended = end in tokens
    kept = tokens[: tokens.index(end)] if ended else tokens
    text = b"".join(vocabulary.surfaces[i] or b"" for i in kept).decode(errors="replace")
    return Continuation(text, len(kept), ended)
