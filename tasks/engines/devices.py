"""Where models run, and how much of a text at once."""

from typing import Literal

import torch

from tasks.running.devices import visible_devices

Dtype = Literal["float32", "bfloat16", "float16"]


def pick_device(names: str) -> torch.device:
    """The first of the devices that a runtime names. Raises `ValueError` for one not here."""
    return torch.device(visible_devices(names)[0])


def tokens_per_batch(asked: int | None, device: torch.device) -> int:
    """What was asked for, or what suits the device: caches make small batches the faster ones on a CPU."""
    return asked or (2048 if device.type == "cpu" else 16384)
