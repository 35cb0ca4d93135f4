"""A model taken apart into body and head, so that logits are made a few rows at a time, and the proof that it may be.

What a model does to its head's output (Cohere and Granite scale it, Gemma 2 caps it) is read from its config; that
nothing else happens is not believed but tried: a few tokens through the whole model and through the parts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_TRIED_TOKENS = 8
_ROUNDINGS = 32  # of the largest logit: the parts may differ by so many from the whole


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
    return parts if _gives_logits_of(parts, model) else None


def _changes(config: "PretrainedConfig") -> tuple[float, float | None]:
    """The factor and the cap that a config puts on its head's output."""
    factors = [getattr(config, name, None) or 1.0 for name in ("logit_scale", "lm_head_multiplier")]
    divisor = getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    try:
        return float(factors[0]) * float(factors[1]) / float(divisor), None if cap is None else float(cap)
    except (TypeError, ValueError):  # a name that another family uses for something else
        return 1.0, None


def _gives_logits_of(parts: Head, model: "PreTrainedModel") -> bool:
    ids = torch.arange(_TRIED_TOKENS, device=model.device).remainder(parts.weight.shape[0]).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    expected = model(**inputs).logits[0].float()
    try:
        found = parts(parts.body(**inputs).last_hidden_state[0]).float()
    except (AttributeError, RuntimeError, TypeError, ValueError):  # a body that can't be called by itself
        return False
    largest = float(expected.abs().nan_to_num(0.0).max())
    allowed = _ROUNDINGS * torch.finfo(parts.weight.dtype).eps * largest
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=allowed, equal_nan=True)
