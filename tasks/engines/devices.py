"""Where models run, and how much of a text at once."""

from collections.abc import Sequence
from typing import Literal

import psutil
import torch

from tasks.running.devices import visible_devices

Dtype = Literal["float32", "bfloat16", "float16"]
_WEIGHTS_SHARE = 0.9  # of the memory that is free; the rest is for activations


def pick_device(names: str) -> torch.device:
    """The first of the devices that a runtime names. Raises `ValueError` for one not here."""
    return torch.device(visible_devices(names)[0])


def memory_for_weights(names: Sequence[str]) -> dict[int | str, int]:
    """Bytes that weights may take on each of these devices and, when those are full, in main memory; nowhere else.

    Keys are as accelerate's `max_memory` has them: the index of a CUDA device, or `cpu` or `mps`.
    """
    room: dict[int | str, int] = {
        torch.device(name).index or 0: torch.cuda.mem_get_info(name)[0] for name in names if name.startswith("cuda")
    }
    room["mps" if "mps" in names else "cpu"] = psutil.virtual_memory().available
    return {device: int(_WEIGHTS_SHARE * free) for device, free in room.items()}


def tokens_per_batch(asked: int | None, device: torch.device) -> int:
    """What was asked for, or what suits the device: caches make small batches the faster ones on a CPU."""
    return asked or (2048 if device.type == "cpu" else 16384)
