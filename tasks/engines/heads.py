"""A model taken apart into body and head, so that logits are made a few rows at a time, and the proof that it may be.

What a model does to its head's output (Cohere and Granite scale it, Gemma 2 caps it) is read from its config; that
nothing else happens is not believed but tried: in a pass over a few tokens the head's output is replaced by numbers
from far below to far above zero, and what the model makes of them is compared. Its own logits would show less: a cap
leaves small ones nearly as they are, and in bf16 their rounding hides even more.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_TRIED_TOKENS = 8
_WIDEST = 100.0  # the head's output is tried from minus this to this, where every cap in use bends it
_FACTORS = "logit_scale", "lm_head_multiplier", "output_multiplier"
_CAPS = "final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"


@dataclass(frozen=True)
class Head:
    """A model's body, and what makes logits of the hidden states that it gives.

    body: called like the model; its output has `last_hidden_state`.
    weight, bias: [vocab, hidden] and [vocab]. multiplier, cap: what is done to their product, in this order.
    """

    body: Callable[..., Any]  # Any: transformers' output classes
    weight: Tensor
    bias: Tensor | None
    multiplier: float = 1.0
    cap: float | None = None

    @property
    def is_linear(self) -> bool:
        """Whether logits are exactly `hidden @ weight.T + bias`."""
        return self.multiplier == 1 and self.cap is None

    def __call__(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits [rows, vocab] of hidden states [rows, hidden] on the head's device, in its dtype; written to `out`."""
        hidden = hidden.to(self.weight)
        if self.bias is None:
            logits = torch.mm(hidden, self.weight.T, out=out)
        else:
            logits = torch.addmm(self.bias, hidden, self.weight.T, out=out)
        return self.change(logits)

    def change(self, logits: Tensor) -> Tensor:
        """The same tensor, its product with the weight multiplied and capped in place."""
        if self.multiplier != 1:
            logits.mul_(self.multiplier)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits


@torch.no_grad()
def split_head(model: "PreTrainedModel") -> Head | None:
    """Body and head of a model whose logits they give; None where that could not be shown by trying."""
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or model.base_model is model or head.weight.is_meta:
        return None  # meta: the weights come from elsewhere whenever the head is called
    multiplier, cap = _changes(model.config.get_text_config())
    parts = Head(model.base_model, head.weight, head.bias, multiplier, cap)
    try:
        return parts if _gives_logits_of(parts, head, model) else None
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # a body that can't be called by itself
        return None


def _changes(config: "PretrainedConfig") -> tuple[float, float | None]:
    """The factor and the cap that a config puts on its head's output."""
    divisor = getattr(config, "logits_scaling", None) or 1.0
    caps = [getattr(config, name, None) for name in _CAPS]
    try:
        factors = [float(getattr(config, name, None) or 1.0) for name in _FACTORS]
        return math.prod(factors) / float(divisor), next((float(cap) for cap in caps if cap), None)
    except (TypeError, ValueError):  # a name that another family uses for something else
        return 1.0, None


def _gives_logits_of(parts: Head, head: torch.nn.Linear, model: "PreTrainedModel") -> bool:
    """Whether the model's head reads what the body gives, once, and the model changes its output as the parts do."""
    ids = torch.arange(_TRIED_TOKENS, device=model.device).remainder(parts.weight.shape[0]).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    read: list[Tensor] = []
    given: list[Tensor] = []

    def replace(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        dtype = torch.promote_types(output.dtype, torch.float32)
        numbers = torch.linspace(-_WIDEST, _WIDEST, output.numel(), dtype=dtype, device=output.device)
        read.append(args[0])
        given.append(numbers.view_as(output))
        return given[-1].clone()

    with head.register_forward_hook(replace):
        changed = model(**inputs).logits
    if len(read) != 1:
        return False
    hidden = parts.body(**inputs).last_hidden_state
    return _are_equal(hidden, read[0]) and _are_equal(parts.change(given[0]), changed)


def _are_equal(found: Tensor, expected: Tensor) -> bool:
    """Whether the two differ, all in all, by no more than the rounding of the coarser one's dtype; NaN is no proof."""
    if found.shape != expected.shape:
        return False
    allowed = max(torch.finfo(found.dtype).eps, torch.finfo(expected.dtype).eps)
    found, expected = found.float(), expected.float().to(found.device)
    return bool((found - expected).norm() <= allowed * torch.minimum(found.norm(), expected.norm()))
