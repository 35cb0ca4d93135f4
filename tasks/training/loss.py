"""The loss inside the model's own forward pass, where wrapped and sharded models have their weights in place."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusion_core.divergences import Divergence
from fusion_core.losses import fusion_loss, fusion_loss_from_logits
from tasks.engines import split_head

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

_Objective = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class LossHead(torch.nn.Linear):
    """A model's own head, which inside `answering` gives the loss in the place of logits.

    DDP, FSDP2 and DeepSpeed prepare gradients and gather weights around a model's forward pass and those of its
    layers; whoever took hidden states and weights out would pass them by.
    """

    def __init__(self, head: torch.nn.Linear) -> None:
        torch.nn.Module.__init__(self)  # the parameters are there already, and maybe shared
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight, self.bias = head.weight, head.bias
        self._objective: _Objective | None = None

    @contextmanager
    def answering(self, objective: _Objective) -> "Iterator[None]":
        """Within the block the head's output is `objective(hidden states, weight, bias)`."""
        self._objective = objective
        try:
            yield
        finally:
            self._objective = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits, or the loss."""
        if self._objective is None:
            return super().forward(hidden)
        return self._objective(hidden, self.weight, self.bias)


def install_loss_head(model: "PreTrainedModel") -> LossHead | None:
    """The head that can give the loss, now the model's own; None where more happens to logits than the head."""
    parts = split_head(model)
    if parts is None or not parts.is_linear:
        return None
    head = LossHead(model.get_output_embeddings())
    model.set_output_embeddings(head)
    return head


def training_loss(
    model: torch.nn.Module,
    head: LossHead | None,
    batch: dict[str, Any],  # Any: tensors and a teacher, see `Collator`
    *,
    lm_weight: float,
    divergence: Divergence,
    num_labels: int,
    num_rows: int,
) -> Tensor:
    """This pass's share of a step's loss: nats, divided by the labels (rows) of the whole step.

    model: as it is wrapped for several processes; head: what `install_loss_head` gave before.
    """
    kept, labels, teacher = batch["kept"], batch["labels"], batch["teacher"].to(batch["kept"].device)
    settings: dict[str, Any] = {
        "lm_weight": lm_weight,
        "divergence": divergence,
        "num_labels": num_labels,
        "num_rows": num_rows,
    }
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    if head is None:
        logits = model(**inputs, use_cache=False).logits
        return fusion_loss_from_logits(logits[kept], labels, teacher, **settings).loss

    def score(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return fusion_loss(hidden[kept], weight, labels, teacher, head_bias=bias, **settings).loss

    with head.answering(score):
        return model(**inputs, use_cache=False).logits  # type: ignore[no-any-return]
