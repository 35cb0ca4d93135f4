"""The strategies, one class each: a plan made from the whole tensor, then arithmetic on stretches of it."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from fusion_core.merging.streaming import Combine, Strategy
from fusion_core.merging.stretches import Rows, find_kth_largest, sum_exactly

_NEARLY_PARALLEL = 1e-4
"""Sine of the angle below which an arc and its chord differ by less than float32's rounding (angle squared / 8)."""

Density = Annotated[float, Field(gt=0, le=1)]


class Linear(Strategy):
    """The weighted mean of the models (Wortsman et al., "Model soups", ICML 2022, section 2)."""

    kind: Literal["linear"] = "linear"
    needs_base: ClassVar[bool] = False
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (), title="Weights", description="One per model, in their order; only their ratios count. Empty: all equal."
    )

    @model_validator(mode="after")
    def _some_weight(self) -> "Linear":
        if self.weights and not sum(self.weights) > 0:
            raise ValueError(f"expected weights with a sum above 0, found {self.weights}; give one model some")
        return self

    def check(self, num_models: int, has_base: bool) -> None:
        """Raises `ValueError` for a base, no model, or another number of weights than of models."""
        super().check(num_models, has_base)
        _check_one_each("linear", "weights", self.weights, num_models)

    def plan(self, rows: Rows, num_models: int, length: int, name: str) -> Combine:
        """The weighted mean; nothing needs to be known of the whole tensor."""
        weights = self.weights or (1.0,) * num_models
        return _weighted_sum([weight / sum(weights) for weight in weights])


class Slerp(Strategy):
    """The point of the arc between two models (Shoemake, "Animating rotation with quaternion curves", 1985, 3.3).

    Each tensor is one vector, and keeps its own length: between vectors of equal norm the result has that norm. The
    chord (linear) takes the arc's place where there is none to speak of: a vector of zeros, nearly parallel vectors
    (where both agree to float32's rounding), and nearly opposite ones (where no arc is shorter than the others).
    """

    kind: Literal["slerp"] = "slerp"
    needs_base: ClassVar[bool] = False
    t: float = Field(0.5, ge=0, le=1, title="Where on the arc", description="0: the first model, 1: the second.")

    def check(self, num_models: int, has_base: bool) -> None:
        """Raises `ValueError` for a base, or another number of models than two."""
        super().check(num_models, has_base)
        if num_models != 2:
            raise ValueError(f"slerp: expected 2 models, found {num_models}; merge more with linear")

    def plan(self, rows: Rows, num_models: int, length: int, name: str) -> Combine:
        """The two models' shares, from the angle between them; the tensor is read once for it."""
        products = (torch.stack([a * a, b * b, a * b]) for a, b in (part.double() for part in rows()))
        square_a, square_b, dot = sum_exactly(products) or (0.0, 0.0, 0.0)
        norms = math.sqrt(square_a) * math.sqrt(square_b)
        angle = math.acos(max(-1.0, min(1.0, dot / norms))) if norms else 0.0
        if math.sin(angle) < _NEARLY_PARALLEL:
            return _weighted_sum([1 - self.t, self.t])
        return _weighted_sum([math.sin(share * angle) / math.sin(angle) for share in (1 - self.t, self.t)])


class TaskArithmetic(Strategy):
    """The base plus the models' scaled task vectors (Ilharco et al., ICLR 2023, section 2)."""

    kind: Literal["task_arithmetic"] = "task_arithmetic"
    scales: tuple[float, ...] = Field(
        (1.0,),
        min_length=1,
        title="Scales",
        description="One for all task vectors, or one per model in their order; a negative one unlearns.",
    )

    def check(self, num_models: int, has_base: bool) -> None:
        """Raises `ValueError` without a base or a model, or for a number of scales that isn't 1 or that of models."""
        super().check(num_models, has_base)
        if len(self.scales) != 1:
            _check_one_each("task_arithmetic", "scales", self.scales, num_models)

    def plan(self, rows: Rows, num_models: int, length: int, name: str) -> Combine:
        """The scaled sum; nothing needs to be known of the whole tensor."""
        return _weighted_sum(self.scales if len(self.scales) == num_models else self.scales * num_models)


class Ties(Strategy):
    """Trim, elect sign, disjoint mean (Yadav et al., "TIES-Merging", NeurIPS 2023, section 4, algorithm 1).

    Of each task vector the elements of largest magnitude stay; each position's sign is that of the sum of what
    stayed; the update is the mean over the models that stayed there with this sign. The paper trims the task vector
    of a whole model, this one each tensor by itself, so that one tensor at a time is enough.

    Ties: elements as large as the smallest one that stays all stay, so more than the share may (differences of
    bfloat16 weights often are equal); a position whose sum is exactly 0 has no sign and keeps the base's value.
    """

    kind: Literal["ties"] = "ties"
    density: Density = Field(0.2, title="Kept share", description="Of each task vector, by magnitude, per tensor.")
    scale: float = Field(1.0, title="Scale", description="Of the merged task vector; the paper's lambda.")

    def plan(self, rows: Rows, num_models: int, length: int, name: str) -> Combine:
        """The models' thresholds; the tensor is read twice for them, unless everything stays."""
        kept = _number_kept(self.density, length)
        threshold = find_kth_largest(lambda: (part.abs() for part in rows()), kept) if kept < length else None

        def combine(deltas: Float[Tensor, "models elements"]) -> Float[Tensor, "elements"]:
            trimmed = deltas if threshold is None else deltas * (deltas.abs() >= threshold)
            return self.scale * _agreeing_mean(trimmed, torch.ones_like(trimmed[:, :1]))

        return combine


class Dare(Strategy):
    """Drop and rescale, then merge (Yu et al., "Language Models are Super Mario", ICML 2024, section 3.2).

    Each element of a task vector stays with probability `density` and is divided by it, or else is 0, so that task
    vectors keep their expectation. They are then summed, or merged by elected signs as in TIES (without trimming).

    Draws depend on the seed, the tensor's name and the model's number alone: neither on the order in which tensors are
    merged nor on the process or the device.
    """

    kind: Literal["dare"] = "dare"
    density: Density = Field(0.1, title="Kept share", description="Probability to stay: one minus the paper's p.")
    seed: int = Field(0, title="Seed", description="Of the drops.")
    elect_sign: bool = Field(
        False, title="Elect signs", description="Mean of the models that agree in sign, as in TIES, instead of the sum."
    )
    scale: float = Field(1.0, title="Scale", description="Of the merged task vector; the paper's lambda.")

    def plan(self, rows: Rows, num_models: int, length: int, name: str) -> Combine:
        """The models' random generators; nothing needs to be known of the tensor."""
        generators = [torch.Generator().manual_seed(_seed_of(self.seed, name, i)) for i in range(num_models)]

        def combine(deltas: Float[Tensor, "models elements"]) -> Float[Tensor, "elements"]:
            draws = torch.stack([torch.rand(deltas.shape[1], generator=g) for g in generators]).to(deltas.device)
            dropped = deltas * (draws < self.density) / self.density
            merged = _agreeing_mean(dropped, torch.ones_like(deltas[:, :1])) if self.elect_sign else dropped.sum(0)
            return self.scale * merged

        return combine


class Sce(Strategy):
    """Select, calculate, erase: FuseChat's merging (Wan et al., "FuseChat", arXiv 2408.07990, the merge stage).

    Select: the positions where the task vectors vary most across models stay. Calculate: a model's coefficient is its
    share of the squares that stayed in this tensor. Erase: what has another sign than the position's sum is left out.
    The update is the sum weighted by coefficients, divided by the coefficients that were not erased.

    Ties: positions that vary as much as the least one that stays all stay (so do all positions, if most don't vary at
    all); a position whose sum is exactly 0 has no sign and keeps the base's value.
    """

    kind: Literal["sce"] = "sce"
    density: Density = Field(1.0, title="Selected share", description="Of each tensor's positions, by variance.")
    normalise: bool = Field(
        True,
        title="Divide by what was not erased",
        description="Off: erased parts count as zeros, so that contested positions move less.",
    )

    def plan(self, rows: Rows, num_models: int, length: int, name: str) -> Combine:
        """The threshold and the coefficients; the tensor is read once for these, twice more for that if needed."""
        kept = _number_kept(self.density, length)
        threshold = find_kth_largest(lambda: map(_spread, rows()), kept) if kept < length else None

        def select(deltas: Float[Tensor, "models elements"]) -> Float[Tensor, "models elements"]:
            return deltas if threshold is None else deltas * (_spread(deltas) >= threshold)

        squares = sum_exactly(select(part).double().square() for part in rows())
        total = math.fsum(squares) or 1.0
        coefficients = [square / total for square in squares]

        def combine(deltas: Float[Tensor, "models elements"]) -> Float[Tensor, "elements"]:
            shares = torch.tensor(coefficients, dtype=deltas.dtype, device=deltas.device).unsqueeze(1)
            return _agreeing_mean(select(deltas), shares, self.normalise)

        return combine


MergeStrategy = Annotated[Linear | Slerp | TaskArithmetic | Ties | Dare | Sce, Field(discriminator="kind")]


# ---- on one stretch --------------------------------------------------------------------------------------


def _weighted_sum(weights: Sequence[float]) -> Combine:
    def combine(rows: Float[Tensor, "models elements"]) -> Float[Tensor, "elements"]:
        return (rows * torch.tensor(weights, dtype=rows.dtype, device=rows.device).unsqueeze(1)).sum(0)

    return combine


def _agreeing_mean(
    deltas: Float[Tensor, "models elements"], weights: Float[Tensor, "models 1"], normalise: bool = True
) -> Float[Tensor, "elements"]:
    """Per position, the weighted mean (or sum) of the task vectors that have the sign of their sum; 0 without one."""
    # In float64, where float32's values cancel exactly: models in another order must not elect another sign.
    sign = _sum_in_float64(deltas).sign().to(deltas.dtype)
    shares = (deltas * sign > 0) * weights
    merged = (deltas * shares).sum(0)
    if not normalise:
        return merged
    counted = shares.sum(0)
    return (merged / counted).masked_fill_(counted == 0, 0.0)


def _spread(deltas: Float[Tensor, "models elements"]) -> Float[Tensor, "1 elements"]:
    """The standard deviation across models: ordered like the variance, and far from underflow."""
    mean = _sum_in_float64(deltas) / len(deltas)
    squares = _sum_in_float64([(row - mean).square_() for row in deltas]) / len(deltas)
    return squares.sqrt_().float().unsqueeze(0)


def _sum_in_float64(rows: Iterable[Float[Tensor, "elements"]]) -> Float[Tensor, "elements"]:
    """The sum over models, row by row: several times as fast as one sum over a short first axis."""
    first, *others = rows
    total = first.to(torch.float64, copy=True)
    for row in others:
        total += row
    return total


def _check_one_each(kind: str, what: str, values: Sequence[float], num_models: int) -> None:
    if values and len(values) != num_models:
        raise ValueError(f"{kind}: expected {num_models} {what}, one per model, found {len(values)}; name one for each")


def _number_kept(density: float, length: int) -> int:
    return min(length, max(1, round(density * length)))


def _seed_of(seed: int, name: str, model: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{model}/{name}".encode()).digest()[:8], "big") >> 1
