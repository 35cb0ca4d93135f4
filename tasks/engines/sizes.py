"""How large models are, and how much they read at once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fusion_core.types import Tokens
from tasks.models.folders import one_at_a_time

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def count_parameters(config: "PretrainedConfig", *, trusted: bool = False) -> int:
    """How many numbers the model has, weights that it repeats counted once; none of them is made.

    trusted: whether code that lies beside the config may run.
    """
    with one_at_a_time:
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    return sum(parameter.numel() for parameter in network.parameters())


def check_window(window: int | None, tokens: Tokens, sizes: Sequence[int]) -> None:
    """Raises `ValueError` when a piece has more tokens than the model reads, naming the `max_bytes` that fits.

    sizes: bytes of each piece.
    """
    lengths = tokens.doc_offsets.diff().tolist()
    longest = max(range(len(lengths)), key=lengths.__getitem__, default=None)
    if window is None or longest is None or lengths[longest] <= window:
        return
    raise ValueError(
        f"corpus.max_bytes: expected pieces of at most {window} tokens, the model's window, "
        f"found one of {lengths[longest]} ({sizes[longest]} bytes); "
        f"set corpus.max_bytes to {fitting_bytes(window, lengths, sizes)} or less"
    )


def fitting_bytes(window: int, lengths: Sequence[int], sizes: Sequence[int]) -> int:
    """How many bytes of text surely fit the window, told from the pieces that don't: their tokens and bytes."""
    bytes_per_token = min(size / length for size, length in zip(sizes, lengths, strict=True) if length > window)
    return max(int(bytes_per_token * window * 0.9), 1)
