"""The network that is trained, from the folder of a model and back to one."""

import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tasks.models.folders import load_model
from tasks.models.weight_files import WEIGHTS_INDEX
from tasks.runtime import TrainingRuntime
from tasks.training.batches import Collator
from tasks.training.examples import Examples
from tasks.training.loss import LossHead, install_loss_head
from tasks.training.spec import LoRA, TrainingSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAME_NATS = 1e-3
"""Packed and alone, a document's mean nll may differ by this much: rounding is a thousandth of it."""


def prepare_network(
    folder: Path, spec: TrainingSpec, runtime: TrainingRuntime
) -> tuple["PreTrainedModel", LossHead | None]:
    """The model on the CPU in training mode, and its head if that can give the loss."""
    network = load_model(folder, spec.weights)
    head = install_loss_head(network)
    if runtime.gradient_checkpointing:
        enable = getattr(network, "activation_checkpointing_enable", network.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if spec.adapter is not None:
        network = _add_adapter(network, spec.adapter, spec.seed)
    network.train()
    return network, head


def _add_adapter(network: "PreTrainedModel", adapter: LoRA, seed: int) -> Any:  # Any: peft wraps what it is given
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ValueError(
            "training.adapter: expected the package peft, found none; pip install 'llm-fuse[adapters]'"
        ) from error
    torch.manual_seed(seed)  # of the first of the two matrices; the second begins at 0
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=list(adapter.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by names that will go
            return get_peft_model(network, config)
    except ValueError as error:
        raise ValueError(f"training.adapter.targets: {error}") from error


def check_packing(network: "PreTrainedModel", examples: Examples, collator: Collator) -> None:
    """Raises `ValueError` for a model in which the second of two packed documents sees the first.

    Whether position ids part documents depends on the architecture (not with ALiBi or in state-space models, say).
    """
    if collator.packing is None or len(examples) < 2:
        return
    first, second = examples[0], examples[1]
    together = Collator(collator.vocab_size, packing=len(first.ids) + len(second.ids))([first, second])
    network.eval()
    with torch.no_grad():
        packed = network(input_ids=together["input_ids"], position_ids=together["position_ids"], use_cache=False).logits
        alone = network(input_ids=second.ids[None], use_cache=False).logits
    network.train()
    found = _mean_nll(packed[0, len(first.ids) :], second.ids)
    expected = _mean_nll(alone[0], second.ids)
    if abs(found - expected) > _SAME_NATS * max(1.0, expected):
        raise ValueError(
            f"runtime.training.packing: expected a packed document to cost what it costs alone, {expected:.4f} nats per"
            f" token, found {found:.4f}: this model lets it see its neighbour; leave packing empty"
        )


def _mean_nll(logits: torch.Tensor, ids: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:]))


def save_network(network: Any, state: dict[str, torch.Tensor] | None, spec: TrainingSpec, output: Path) -> None:
    """Writes config and safetensors weights; an adapter is added to the weights it was trained beside.

    network: unwrapped. state: of a sharded network, whole; None to take the network's own.
    """
    if spec.adapter is not None:
        network = network.merge_and_unload()
    network.save_pretrained(output, state_dict=state)


def copy_companions(folder: Path, target: Path) -> None:
    """Copies what belongs to a model besides its weights, such as its tokenizer; what is there already stays."""
    for path in folder.iterdir():
        is_weights = path.suffix == ".safetensors" or path.name == WEIGHTS_INDEX
        if path.is_file() and not is_weights and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
