"""Where models run, and how much of a text at once."""

from typing import Literal

import torch

Dtype = Literal["float32", "bfloat16", "float16"]


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first of CUDA, MPS and CPU. Raises `ValueError` for one not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: expected one of this machine's devices, found {name!r}; try cpu or auto") from error


def tokens_per_batch(asked: int | None, device: torch.device) -> int:
    """What was asked for, or what suits the device: caches make small batches the faster ones on a CPU."""
    return asked or (2048 if device.type == "cpu" else 16384)
