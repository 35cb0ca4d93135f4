"""What every merging strategy does around its own arithmetic: checks, reading by stretches, the base, the cast."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from fusion_core.merging.stretches import Elements, Rows, spans
from fusion_core.spec import Spec

MERGEABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Combine = Callable[[Float[Tensor, "models elements"]], Float[Tensor, "elements"]]
"""One stretch of all models (of their task vectors, for strategies with a base) to the merged stretch."""


class Strategy(Spec, ABC):
    """Called with one tensor of every model, it returns the merged tensor; a subclass says how by `plan`."""

    kind: str
    needs_base: ClassVar[bool] = True

    def __call__(
        self, tensors: Sequence[Shaped[Tensor, "..."]], base: Shaped[Tensor, "..."] | None = None, name: str = ""
    ) -> Shaped[Tensor, "..."]:
        """The merged tensor, in the base's dtype or else the first model's.

        Args:
            tensors: the same tensor of every model, of one shape; floating dtypes may differ.
            base: what the models were trained from, for strategies that work on task vectors.
            name: of the tensor, for messages and as a seed; two runs agree on random draws when they agree on it.

        Raises:
            ValueError: a number of models that the strategy doesn't take, a base missing or in excess, shapes that
                differ, a dtype that isn't float16, bfloat16, float32 or float64, a value that isn't finite or that
                the result's dtype can't hold.
        """
        self.check(len(tensors), base is not None)
        operands = [*tensors, *([] if base is None else [base])]
        shapes = [tuple(tensor.shape) for tensor in operands]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"{name or 'tensor'}: expected one shape, found {shapes}; only models of one architecture can be merged"
            )
        flat = [tensor.reshape(-1) for tensor in operands]
        like = tensors[0] if base is None else base
        merged = torch.empty_like(like, memory_format=torch.contiguous_format)
        parts = self.stream(flat[: len(tensors)], None if base is None else flat[-1], name)
        for span, part in zip(spans(like.numel()), parts, strict=True):
            merged.view(-1)[span] = part
        return merged

    def stream(
        self, models: Sequence[Elements], base: Elements | None = None, name: str = ""
    ) -> Iterator[Shaped[Tensor, "elements"]]:
        """The merged tensor's stretches in order, in its dtype; the arguments and errors are those of a call.

        What the strategy must know of the whole tensor is found first, by reading the models up to four times.
        """
        name = name or "tensor"
        self.check(len(models), base is not None)
        _check_operands([*models, *([] if base is None else [base])], name)
        dtype = models[0].dtype if base is None else base.dtype

        def read(span: slice) -> Float[Tensor, "models elements"]:
            rows = torch.stack([_read(model, span, f"{name} of model {i}") for i, model in enumerate(models)])
            return rows if base is None else rows.sub_(_read(base, span, f"{name} of the base"))

        length = len(models[0])
        combine = self.plan(lambda: map(read, spans(length)), len(models), length, name)
        for span in spans(length):
            merged = combine(read(span))
            if base is not None:
                merged = merged + base[span].float()
            yield _cast(merged, dtype, name)

    def check(self, num_models: int, has_base: bool) -> None:
        """Raises `ValueError` unless the strategy takes so many models, with or without a base."""
        if num_models < 1:
            raise ValueError(f"{self.kind}: expected at least 1 model to merge, found 0; list the models")
        if self.needs_base and not has_base:
            raise ValueError(
                f"{self.kind}: expected the base that the models were trained from, found none; name it, or merge "
                "with linear or slerp"
            )
        if has_base and not self.needs_base:
            raise ValueError(
                f"{self.kind}: expected no base, found one; leave it out, or list it as a model if it shall count"
            )

    @abstractmethod
    def plan(self, rows: Rows, num_models: int, length: int, name: str) -> Combine:
        """The function that merges a stretch, called on the stretches in order.

        rows: reads the whole tensor of all models (their task vectors); length: its elements, possibly 0.
        """


def _check_operands(operands: Sequence[Elements], name: str) -> None:
    lengths = [len(elements) for elements in operands]
    if len(set(lengths)) > 1:
        raise ValueError(f"{name}: expected as many elements in every model, found {lengths}; compare the shapes first")
    for elements in operands:
        if elements.dtype not in MERGEABLE:
            raise ValueError(
                f"{name}: expected float16, bfloat16, float32 or float64, found {elements.dtype}; "
                "dequantise the model first"
            )


def _read(elements: Elements, span: slice, whose: str) -> Float[Tensor, "elements"]:
    values = elements[span].float()
    if not _is_finite(values):
        number = int((~values.isfinite()).sum())
        raise ValueError(
            f"{whose}: expected finite weights, found {number} NaN or infinite ones among {len(values)}; "
            "the model is broken, leave it out"
        )
    return values


def _cast(merged: Float[Tensor, "elements"], dtype: torch.dtype, name: str) -> Shaped[Tensor, "elements"]:
    cast = merged.to(dtype)
    if not _is_finite(cast):
        largest = float(merged.abs().max())
        raise ValueError(
            f"{name}: expected merged weights that {dtype} can hold, found {largest:.3g}; "
            "choose a smaller scale or a base of another dtype"
        )
    return cast


def _is_finite(values: Shaped[Tensor, "elements"]) -> bool:
    smallest, largest = torch.aminmax(values)  # both are NaN if one value is; far faster than asking each
    return bool(smallest.isfinite() & largest.isfinite())
