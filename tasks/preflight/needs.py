"""What a run takes: memory per step against the devices of this machine, bytes in the store, device-hours, money."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch

from tasks.preflight.findings import Description
from tasks.quantities import format_bytes

TRAINING_BYTES = 16
"""Per parameter: weights, gradients and two Adam states in fp32. Activations come on top."""
_FORWARD_FLOPS, _TRAINING_FLOPS = 2, 6  # per parameter and token
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Device:
    """Something that models can run on, and its memory in bytes."""

    name: str
    memory: int


@dataclass(frozen=True)
class Plan:
    """What of a recipe decides how much it takes.

    corpus_bytes: of text; None where nobody can tell. row_bytes: of one token's distribution in the store. trainings:
        of the target, baselines included. batch_tokens: of one extraction batch. flops: what a device sustains.
    """

    corpus_bytes: int | None
    row_bytes: float
    dtype: str
    batch_tokens: int
    epochs: float
    trainings: int
    flops: float
    price_per_hour: float | None


def find_devices() -> list[Device]:
    """The accelerators of this machine with their whole memory, or the CPU where there is none."""
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        found = [torch.cuda.get_device_properties(number) for number in range(count)]
        return [
            Device(f"{properties.name} ({number})", properties.total_memory) for number, properties in enumerate(found)
        ]
    name = "MPS" if torch.backends.mps.is_available() else "CPU"
    return [Device(name, psutil.virtual_memory().total)]


def describe_needs(
    target: Description, sources: Mapping[str, Description], plan: Plan, devices: Sequence[Device]
) -> tuple[dict[str, str], list[str]]:
    """What a run takes, in words by what it is taken for, and warnings where it doesn't fit this machine."""
    needs, warnings = {}, []
    largest = max(devices, key=lambda device: device.memory)
    for step, size in memory_needed(target, sources, plan).items():
        fits = size <= largest.memory
        needs[f"memory to {step}"] = f"{format_bytes(size)} of {format_bytes(largest.memory)} on {largest.name}"
        if not fits:
            warnings.append(
                f"{step} needs at least {format_bytes(size)} on one device, and {largest.name} has "
                f"{format_bytes(largest.memory)}; run it on a larger one"
            )
    written, hours = bytes_written(target, sources, plan), device_hours(target, sources, plan)
    if plan.corpus_bytes is None:
        needs["corpus"] = "size unknown; --corpus-bytes tells it"
    else:
        needs["corpus"] = format_bytes(plan.corpus_bytes)
    if written is not None:
        needs["distributions in the store"] = format_bytes(written)
    if hours is not None:
        needs["device-hours"] = f"{hours:,.1f} at {plan.flops / 1e12:g} TFLOP/s sustained"
        if plan.price_per_hour is not None:
            needs["cost"] = f"{hours * plan.price_per_hour:,.2f} at {plan.price_per_hour:g} per device-hour"
    return needs, warnings


def memory_needed(target: Description, sources: Mapping[str, Description], plan: Plan) -> dict[str, int]:
    """Bytes on a device per step, at least; models of unknown size are left out.

    extract: weights and one batch of logits, as they come and once in fp32.
    """
    found = {}
    width = _DTYPE_BYTES[plan.dtype]
    for name, model in {"target": target, **sources}.items():
        if model.parameters is not None:
            logits = plan.batch_tokens * (model.embedding_rows or model.tokens) * (width + 4)
            found[f"extract {name}"] = model.parameters * width + logits
    if target.parameters is not None:
        found["train"] = target.parameters * TRAINING_BYTES
    return found


def bytes_written(target: Description, sources: Mapping[str, Description], plan: Plan) -> int | None:
    """Bytes of all distributions in the store: extracted, aligned and fused; None without a known corpus."""
    if plan.corpus_bytes is None:
        return None
    ours = plan.corpus_bytes / target.bytes_per_token
    theirs = sum(plan.corpus_bytes / source.bytes_per_token for source in sources.values())
    return round(plan.row_bytes * (ours * (2 + len(sources)) + theirs))


def device_hours(target: Description, sources: Mapping[str, Description], plan: Plan) -> float | None:
    """Hours on one device that sustains `plan.flops`: reading the corpus with every model, training the target.

    None where a model's size or the corpus is unknown. Evaluation, alignment and fusion aren't counted.
    """
    if plan.corpus_bytes is None or any(m.parameters is None for m in (target, *sources.values())):
        return None
    flops = sum(_FORWARD_FLOPS * (m.parameters or 0) / m.bytes_per_token for m in (target, *sources.values()))
    training = _TRAINING_FLOPS * (target.parameters or 0) / target.bytes_per_token
    return plan.corpus_bytes * (flops + training * plan.epochs * plan.trainings) / plan.flops / 3600


def reason_not_to_run(weight_bytes: int, sample_bytes: int, device: Device) -> str | None:
    """Why a model isn't run over a sample here, or None: no weights, too large for the memory or for minutes."""
    if not weight_bytes:
        return "no weights here; an inspection downloads none"
    if weight_bytes > device.memory // 2:
        return f"{weight_bytes / 1e9:.1f} GB of weights, and {device.name} has {device.memory / 1e9:.1f} GB of memory"
    seconds = _FORWARD_FLOPS * weight_bytes / 2 * sample_bytes / 3 / _SUSTAINED.get(device.name, 2e13)
    if seconds > _MOST_SECONDS:
        return f"it would take about {seconds / 60:.0f} minutes on {device.name}"
    return None


_SUSTAINED = {"CPU": 5e10, "MPS": 2e12}
_MOST_SECONDS = 600
