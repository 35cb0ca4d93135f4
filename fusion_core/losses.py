"""The training objective: CLM on the labels and a divergence from the sparse teacher, in one pass.

Per label row `i`, with w the share of the teacher that is known (1 - unknown; 0 where absent):

    loss = 1 / num_labels * sum_i (1 - (1 - lm_weight) w_i) nll_i + (1 - lm_weight) w_i divergence_i

With full coverage that is lm_weight * CLM + (1 - lm_weight) * divergence; an absent row is CLM alone. The original's
divergences are a mean over tokens: rows without a label (a sequence's last) count there, so all rows are to be passed.

Nothing dense is kept: the logits of a chunk of rows are computed, scored, overwritten by their own gradient,
multiplied into the gradients of the hidden states and of the head, and overwritten by the next chunk's (Hsu et al.
2024, Liger Kernel). Every logit is computed once: three products of matrices as with full logits, none twice.
`fusion_core.objective` has the formulas, `fusion_core.divergences` the table of divergences.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from fusion_core.divergences import Divergence, SoftCrossEntropy
from fusion_core.objective import IGNORED_LABEL, Objective
from fusion_core.types import TokenDist

_CHUNK_ELEMENTS = 2**24  # 64 MiB of fp32 logits at a time ...
_CHUNK_ROWS = 512  # ... and no fewer rows: each chunk reads and writes the head's whole gradient for them


def raise_lm_weight(start: float, step: int, max_steps: int) -> float:
    """The weight at `step` that rises linearly from `start` to 1: start + (1 - start) * step / max_steps.

    1 from `max_steps` on; the teacher fades out (the original's "hard_and_decay").
    Raises ValueError for a start outside 0..1 or a negative step.
    """
    if not 0 <= start <= 1 or step < 0:
        raise ValueError(f"expected a start in 0..1 and a step of at least 0, found {start} and {step}; 1 is CLM alone")
    return start + (1 - start) * min(step / max(max_steps, 1), 1.0)


@dataclass(frozen=True)
class FusionLoss:
    """The objective and its parts, each a tensor without axes.

    loss: differentiable, nats per label.
    clm: detached mean nll of the labels, nats.
    divergence: detached mean over label rows, weighted by how much of their teacher is known; 0 if nothing is.
    covered: detached share of the label rows' teacher that is known.
    """

    loss: Tensor
    clm: Tensor
    divergence: Tensor
    covered: Tensor


def fusion_loss(
    hidden: Float[Tensor, "rows hidden"],
    head_weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, "rows"],
    teacher: TokenDist,
    *,
    lm_weight: float = 0.9,
    divergence: Divergence = SoftCrossEntropy(),
    head_bias: Float[Tensor, "vocab"] | None = None,
    num_labels: int | None = None,
    num_rows: int | None = None,
    chunk_rows: int | None = None,
) -> FusionLoss:
    """The objective of the logits `hidden @ head_weight.T + head_bias`, which never exist at once.

    labels: row `i` predicts labels[i], so the caller has shifted them; `IGNORED_LABEL` (-100) rows add nothing.
    teacher: one row per row of `hidden`.
    num_labels: what the sums are divided by, to average over several calls or processes; the labels of this
        call by default. Without any label the loss is 0.
    num_rows: the same for a divergence that is averaged over tokens: its rows; those of this call by default.
    chunk_rows: rows of logits at a time; bounds the memory, changes nothing but rounding. By default 64 MiB of fp32
        logits, or 512 rows where these are more: the time of narrower chunks goes into the head's gradient.

    The gradients are computed with the loss, in fp32 (float64 for float64 states), so one backward pass
    is possible.

    Raises ValueError for shapes that don't fit, labels out of range, or a larger vocabulary.
    """
    _check_head(hidden, head_weight, head_bias)
    objective = _check(Objective(labels, teacher, divergence, lm_weight), hidden.shape[0], head_weight.shape[0])
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    chunk_rows = _count_chunk_rows(chunk_rows, head_weight.shape[0])
    count = _count_labels(labels, num_labels)
    objective = _scale_teacher(objective, count, num_rows)
    arguments = (hidden, head_weight, head_bias, objective, count, chunk_rows, torch.is_grad_enabled())
    return FusionLoss(*_HeadLoss.apply(*arguments))  # type: ignore[no-untyped-call]


def fusion_loss_from_logits(
    logits: Float[Tensor, "rows vocab"],
    labels: Int[Tensor, "rows"],
    teacher: TokenDist,
    *,
    lm_weight: float = 0.9,
    divergence: Divergence = SoftCrossEntropy(),
    num_labels: int | None = None,
    num_rows: int | None = None,
    chunk_rows: int | None = None,
) -> FusionLoss:
    """The same as `fusion_loss` for a model whose head can't be taken apart; one copy of the logits is made.

    Raises ValueError for shapes that don't fit, labels out of range, or a larger vocabulary.
    """
    if logits.ndim != 2:
        raise ValueError(f"expected logits [rows, vocab], found {tuple(logits.shape)}; flatten the batch")
    objective = _check(Objective(labels, teacher, divergence, lm_weight), *logits.shape)
    chunk_rows = _count_chunk_rows(chunk_rows, logits.shape[1])
    count = _count_labels(labels, num_labels)
    objective = _scale_teacher(objective, count, num_rows)
    arguments = (logits, objective, count, chunk_rows, torch.is_grad_enabled())
    return FusionLoss(*_LogitsLoss.apply(*arguments))  # type: ignore[no-untyped-call]


class _HeadLoss(torch.autograd.Function):
    """The loss of hidden states and a head; gradients are made in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,  # torch leaves the type of its context open
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        objective: Objective,
        num_labels: int,
        chunk_rows: int,
        with_grad: bool,
    ) -> tuple[Tensor, ...]:
        dtype = _compute_dtype(hidden)
        head = weight.to(hidden.dtype)
        wanted = [with_grad and needed for needed in ctx.needs_input_grad[:3]]
        grad_hidden = torch.empty_like(hidden) if wanted[0] else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if wanted[1] else None
        grad_bias = torch.zeros_like(bias, dtype=dtype) if bias is not None and wanted[2] else None
        sums = torch.zeros(4, dtype=dtype, device=hidden.device)
        buffers = _allocate_chunk(hidden, weight.shape[0], chunk_rows)
        for rows, chunk in objective.chunks(chunk_rows):
            product, logits = (buffer[: rows.stop - rows.start] for buffer in buffers)
            torch.mm(hidden[rows], head.T, out=product)
            _copy(product, logits)
            if bias is not None:
                logits += bias
            sums += chunk.score(logits, any(wanted))
            _copy(logits, product)  # the gradient, rounded as its products want it
            if grad_hidden is not None:
                torch.mm(product, head, out=grad_hidden[rows])
            if grad_weight is not None:
                _add_product(grad_weight, product, hidden[rows])
            if grad_bias is not None:
                grad_bias += logits.sum(0)
        return _finish(ctx, sums, num_labels, [grad_hidden, grad_weight, grad_bias], [hidden, weight, bias])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (*_scale_grads(ctx, grad_loss), None, None, None, None)


class _LogitsLoss(torch.autograd.Function):
    """The loss of logits that exist already."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, objective: Objective, num_labels: int, chunk_rows: int, with_grad: bool
    ) -> tuple[Tensor, ...]:
        dtype = _compute_dtype(logits)
        wanted = with_grad and ctx.needs_input_grad[0]
        grad = torch.empty_like(logits) if wanted else None
        sums = torch.zeros(4, dtype=dtype, device=logits.device)
        buffer = torch.empty(min(chunk_rows, len(logits)), logits.shape[1], dtype=dtype, device=logits.device)
        for rows, part in objective.chunks(chunk_rows):
            chunk = buffer[: rows.stop - rows.start].copy_(logits[rows])
            sums += part.score(chunk, wanted)
            if grad is not None:
                grad[rows] = chunk
        return _finish(ctx, sums, num_labels, [grad], [logits])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (*_scale_grads(ctx, grad_loss), None, None, None, None)


def _finish(
    ctx: Any, sums: Tensor, num_labels: int, grads: list[Tensor | None], inputs: list[Tensor | None]
) -> tuple[Tensor, ...]:
    """The fields of `FusionLoss`; the gradients of the *sum* are kept for the backward pass."""
    ctx.grads, ctx.num_labels = grads, num_labels
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs]
    loss, nll, divergence, weight = sums.unbind()
    mean_divergence = divergence / weight.clamp(min=torch.finfo(sums.dtype).tiny)
    parts = (nll / num_labels, mean_divergence, weight / num_labels)
    ctx.mark_non_differentiable(*parts)
    return (loss / num_labels, *parts)


def _scale_grads(ctx: Any, grad_loss: Tensor) -> list[Tensor | None]:
    """The gradients of the mean times that of the loss, in place: a copy of the head's is as large as the head.

    They are divided by the number of labels here and not earlier, or fp16 would round the small ones to 0.
    """
    if ctx.grads is None:
        raise RuntimeError("expected one backward pass through a fusion loss, found a second; compute the loss again")
    grads: list[Tensor | None] = ctx.grads
    ctx.grads = None
    scale = grad_loss / ctx.num_labels
    return [None if grad is None else grad.mul_(scale).to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)]


def _allocate_chunk(hidden: Tensor, vocab_size: int, chunk_rows: int) -> tuple[Tensor, Tensor]:
    """Room for the logits of a chunk as they are multiplied and as they are scored; the same one for equal dtypes."""
    product = hidden.new_empty(min(chunk_rows, len(hidden)), vocab_size)
    return product, product.to(_compute_dtype(hidden))


def _copy(source: Tensor, target: Tensor) -> None:
    if source.dtype != target.dtype:  # else they are one
        target.copy_(source)


def _add_product(grad_weight: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
    if grad_weight.dtype == hidden.dtype:
        grad_weight.addmm_(grad_logits.T, hidden)
    else:  # half precision: the product in half, the sum over chunks in fp32
        grad_weight += grad_logits.T @ hidden


def _compute_dtype(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _count_labels(labels: Tensor, num_labels: int | None) -> int:
    """What the sums are divided by; at least 1, so that a call without labels has a loss of 0."""
    return max(int((labels != IGNORED_LABEL).sum()) if num_labels is None else num_labels, 1)


def _scale_teacher(objective: Objective, num_labels: int, num_rows: int | None) -> Objective:
    """The same, its teacher weighed so that after the division by `num_labels` it is a mean over what it should be."""
    if objective.divergence.averaged_over == "labels":
        return objective
    return replace(objective, teacher_scale=float(num_labels) / max(num_rows or len(objective.labels), 1))


def _count_chunk_rows(chunk_rows: int | None, vocab: int) -> int:
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"expected chunks of at least 1 row, found {chunk_rows}; or pass none")
    return chunk_rows or max(_CHUNK_ROWS, _CHUNK_ELEMENTS // max(vocab, 1))


def _check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"expected hidden states [rows, hidden] and a head [vocab, hidden], found {tuple(hidden.shape)} and "
            f"{tuple(weight.shape)}; flatten the batch, and take both from one model"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"expected a bias for each of {weight.shape[0]} tokens, found {tuple(bias.shape)}; take the same head's"
        )


def _check(objective: Objective, rows: int, vocab: int) -> Objective:
    labels, teacher = objective.labels, objective.teacher
    if labels.shape != (rows,) or teacher.num_rows != rows:
        raise ValueError(
            f"expected {rows} labels and teacher rows, one per row of the student, found {tuple(labels.shape)} labels"
            f" and {teacher.num_rows} teacher rows; flatten the batch and take the teacher's rows of the same tokens"
        )
    if teacher.vocab_size > vocab:
        raise ValueError(
            f"logits score {vocab} tokens but the teacher is over {teacher.vocab_size}; align the teacher to the target"
            " vocabulary first"
        )
    if not 0 <= objective.lm_weight <= 1:
        raise ValueError(f"expected an lm_weight in 0..1, found {objective.lm_weight}; 1 is CLM alone")
    counted = labels[labels != IGNORED_LABEL]
    if len(counted) and not 0 <= int(counted.min()) <= int(counted.max()) < vocab:
        raise ValueError(
            f"expected labels in 0..{vocab - 1} or {IGNORED_LABEL} for none, found {int(counted.min())}.."
            f"{int(counted.max())}; check the tokenizer"
        )
    return objective
