"""Merging strategies against loops in float64, by their identities, and over tensors of many stretches."""

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fusion_core.merging import STRETCH, Dare, Linear, MergeStrategy, Sce, Slerp, TaskArithmetic, Ties
from fusion_core.merging.stretches import find_kth_largest, spans, sum_exactly

WITHOUT_BASE: list[Linear | Slerp] = [Linear(), Linear(weights=(1, 3)), Slerp(), Slerp(t=0.2)]
WITH_BASE: list[TaskArithmetic | Ties | Dare | Sce] = [
    TaskArithmetic(scales=(0.5,)),
    TaskArithmetic(scales=(0.3, -0.7)),
    Ties(density=0.4),
    Ties(density=1.0, scale=0.7),
    Dare(density=0.5, seed=3),
    Dare(density=0.5, elect_sign=True),
    Sce(),
    Sce(density=0.4),
    Sce(density=0.4, normalise=False),
]
EVERY = [*WITHOUT_BASE, *WITH_BASE]
FOR_ANY_NUMBER = [Linear(), *(s for s in WITH_BASE if s != TaskArithmetic(scales=(0.3, -0.7)))]
LONG = 2 * STRETCH + 1001
Row = list[float]


def draw(count: int, shape: Sequence[int] = (4, 9), seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(shape), generator=generator).to(dtype) for _ in range(count)]


def draw_apart_from_zero(count: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Values of magnitude 2**-7 to 1, so that differences of half types are exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    magnitudes = torch.rand(count, 50, 40, generator=generator).clamp(min=2**-7)
    signs = torch.randint(2, (count, 50, 40), generator=generator) * 2 - 1
    return list((magnitudes * signs).to(dtype))


def merge(strategy: MergeStrategy, tensors: list[Tensor], base: Tensor, name: str = "weight") -> Tensor:
    return strategy(tensors, base if strategy.needs_base else None, name)


# ---- the definitions, element by element in float64 ----------------------------------------------------------


def elected_mean(columns: list[Row], weights: Row, normalise: bool = True) -> Row:
    merged = []
    for values in zip(*columns, strict=True):
        total = sum(values)
        agreeing = [(v, w) for v, w in zip(values, weights, strict=True) if v * total > 0]
        weight = sum(w for _, w in agreeing) if normalise else 1.0
        merged.append(sum(v * w for v, w in agreeing) / weight if agreeing else 0.0)
    return merged


def define_linear(strategy: Linear, models: list[Row]) -> Row:
    weights = strategy.weights or [1.0] * len(models)
    return [
        sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights) for values in zip(*models, strict=True)
    ]


def define_slerp(strategy: Slerp, models: list[Row]) -> Row:
    a, b = models
    angle = math.acos(sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b))
    first, second = (math.sin(s * angle) / math.sin(angle) for s in (1 - strategy.t, strategy.t))
    return [first * x + second * y for x, y in zip(a, b, strict=True)]


def define_task_arithmetic(strategy: TaskArithmetic, deltas: list[Row]) -> Row:
    scales = strategy.scales if len(strategy.scales) == len(deltas) else strategy.scales * len(deltas)
    return [sum(s * d for s, d in zip(scales, values, strict=True)) for values in zip(*deltas, strict=True)]


def define_ties(strategy: Ties, deltas: list[Row]) -> Row:
    trimmed = []
    for delta in deltas:
        kept = max(1, round(strategy.density * len(delta)))
        least = sorted((abs(d) for d in delta), reverse=True)[kept - 1]
        trimmed.append([d if abs(d) >= least else 0.0 for d in delta])
    return [strategy.scale * m for m in elected_mean(trimmed, [1.0] * len(deltas))]


def define_dare(strategy: Dare, deltas: list[Row], name: str) -> Row:
    kept = []
    for i, delta in enumerate(deltas):
        digest = hashlib.sha256(f"{strategy.seed}/{i}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") // 2)
        draws = torch.rand(len(delta), generator=generator).tolist()
        kept.append([d / strategy.density if u < strategy.density else 0.0 for d, u in zip(delta, draws, strict=True)])
    merged = elected_mean(kept, [1.0] * len(kept)) if strategy.elect_sign else [sum(v) for v in zip(*kept, strict=True)]
    return [strategy.scale * m for m in merged]


def define_sce(strategy: Sce, deltas: list[Row]) -> Row:
    def variance(values: tuple[float, ...]) -> float:
        mean = sum(values) / len(values)
        return sum((v - mean) ** 2 for v in values) / len(values)

    variances = [variance(values) for values in zip(*deltas, strict=True)]
    least = sorted(variances, reverse=True)[max(1, round(strategy.density * len(variances))) - 1]
    selected = [[d if v >= least else 0.0 for d, v in zip(delta, variances, strict=True)] for delta in deltas]
    squares = [sum(d * d for d in delta) for delta in selected]
    return elected_mean(selected, [s / (sum(squares) or 1.0) for s in squares], strategy.normalise)


def define(strategy: MergeStrategy, tensors: list[Tensor], base: Tensor, name: str = "weight") -> Tensor:
    models: list[Row] = [t.double().flatten().tolist() for t in tensors]
    start: Row = base.double().flatten().tolist()
    deltas = [[x - b for x, b in zip(model, start, strict=True)] for model in models]
    match strategy:
        case Linear():
            merged = define_linear(strategy, models)
        case Slerp():
            merged = define_slerp(strategy, models)
        case TaskArithmetic():
            merged = [b + d for b, d in zip(start, define_task_arithmetic(strategy, deltas), strict=True)]
        case Ties():
            merged = [b + d for b, d in zip(start, define_ties(strategy, deltas), strict=True)]
        case Dare():
            merged = [b + d for b, d in zip(start, define_dare(strategy, deltas, name), strict=True)]
        case Sce():
            merged = [b + d for b, d in zip(start, define_sce(strategy, deltas), strict=True)]
    return torch.tensor(merged, dtype=torch.float64).view(base.shape)


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_a_strategy_is_its_definition(strategy: MergeStrategy, seed: int) -> None:
    *tensors, base = draw(3, seed=seed)
    expected = define(strategy, tensors, base)
    torch.testing.assert_close(merge(strategy, tensors, base).double(), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("strategy", FOR_ANY_NUMBER, ids=repr)
def test_more_than_two_models_are_merged_by_the_same_definition(strategy: MergeStrategy) -> None:
    *tensors, base = draw(6, seed=8)
    expected = define(strategy, tensors, base)
    torch.testing.assert_close(merge(strategy, tensors, base).double(), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("strategy", [s for s in EVERY if s.kind != "slerp"], ids=repr)
@settings(max_examples=15, deadline=None)
@given(values=st.lists(st.tuples(*[st.integers(-6, 6)] * 3), min_size=1, max_size=12))
def test_coarse_grids_full_of_ties_and_zeros_follow_the_definition(
    strategy: MergeStrategy, values: list[tuple[int, int, int]]
) -> None:
    """Small integers over 4: deltas tie, cancel to exact zero and are exact in every dtype."""
    *tensors, base = (torch.tensor(column) / 4 for column in zip(*values, strict=True))
    expected = define(strategy, tensors, base)
    torch.testing.assert_close(merge(strategy, tensors, base).double(), expected, rtol=1e-5, atol=1e-5)


# ---- identities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "strategy",
    [
        Linear(),
        Linear(weights=(1, 2, 4)),
        TaskArithmetic(scales=(0.25, 0.25, 0.5)),
        Ties(density=1),
        Sce(),
        Sce(density=0.2),
    ],
    ids=repr,
)
def test_a_model_merged_with_itself_is_itself(strategy: MergeStrategy, dtype: torch.dtype) -> None:
    model, base = draw_apart_from_zero(2, dtype)
    assert torch.equal(merge(strategy, [model] * 3, base), model)


def test_a_model_interpolated_with_itself_is_itself() -> None:
    (model,) = draw(1, dtype=torch.bfloat16)
    assert torch.equal(Slerp(t=0.3)([model, model]), model)


def test_a_single_model_is_itself_under_a_whole_task_vector() -> None:
    model, base = draw_apart_from_zero(2, torch.bfloat16)
    for strategy in (TaskArithmetic(), Ties(density=1), Dare(density=1), Dare(density=1, elect_sign=True), Sce()):
        assert torch.equal(strategy([model], base), model), strategy


@pytest.mark.parametrize("strategy", WITH_BASE, ids=repr)
def test_models_that_are_the_base_give_the_base(strategy: MergeStrategy) -> None:
    (base,) = draw(1)
    assert torch.equal(strategy([base, base], base), base)


def test_a_weight_of_one_and_zeros_picks_that_model() -> None:
    tensors = draw(3)
    for i, tensor in enumerate(tensors):
        weights = tuple(float(i == j) for j in range(3))
        assert torch.equal(Linear(weights=weights)(tensors), tensor)


def test_only_the_ratios_of_linear_weights_count() -> None:
    tensors = draw(2)
    assert torch.equal(Linear(weights=(1, 3))(tensors), Linear(weights=(2, 6))(tensors))


def test_the_ends_of_an_arc_are_its_models() -> None:
    first, second = draw(2)
    assert torch.equal(Slerp(t=0)([first, second]), first)
    torch.testing.assert_close(Slerp(t=1)([first, second]), second)


@given(t=st.floats(0, 1), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_slerp_keeps_the_norm_and_divides_the_angle(t: float, seed: int) -> None:
    first, second = (tensor / tensor.norm() for tensor in draw(2, shape=(64,), seed=seed))
    merged = Slerp(t=t)([first, second]).double()
    assert float(merged.norm()) == pytest.approx(1, abs=1e-6)
    whole, part = (
        math.acos(min(1.0, float(first.double() @ other))) for other in (second.double(), merged / merged.norm())
    )
    assert part == pytest.approx(t * whole, abs=1e-3)  # acos doubles the digits lost near 1


@pytest.mark.parametrize("case", ["zeros", "parallel", "opposite"])
def test_slerp_takes_the_chord_where_there_is_no_arc(case: str) -> None:
    (first,) = draw(1)
    second = {"zeros": torch.zeros_like(first), "parallel": 2 * first, "opposite": -first}[case]
    assert torch.equal(Slerp(t=0.3)([first, second]), Linear(weights=(0.7, 0.3))([first, second]))


def test_slerp_and_its_chord_meet_where_one_takes_over_from_the_other() -> None:
    first, other = (tensor / tensor.norm() for tensor in draw(2, shape=(1000,)))
    for angle in (0.5e-4, 0.99e-4, 1.01e-4, 2e-4):
        second = first + angle * (other - (first @ other) * first)
        merged = [strategy([first, second]) for strategy in (Slerp(), Linear())]
        torch.testing.assert_close(*merged, rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    "strategy", [Linear(), TaskArithmetic(), Ties(density=0.3), Sce(density=0.3), Sce(normalise=False)], ids=repr
)
def test_the_order_of_models_does_not_matter(strategy: MergeStrategy) -> None:
    *tensors, base = draw(4, shape=(40, 40), dtype=torch.bfloat16)
    expected = merge(strategy, tensors, base).float()
    for order in itertools.permutations(tensors):
        torch.testing.assert_close(merge(strategy, list(order), base).float(), expected, rtol=2**-7, atol=0)


def test_a_sign_is_that_of_the_exact_sum_in_any_order() -> None:
    """In float32 (1 + 1e-9) - 1 is 0, and (1 - 1) + 1e-9 isn't."""
    base = torch.zeros(1)
    for deltas in itertools.permutations([1.0, 1e-9, -1.0]):
        merged = Ties(density=1)([torch.tensor([delta]) for delta in deltas], base)
        assert float(merged) == pytest.approx(0.5)


def test_ties_keeps_the_base_where_no_sign_is_elected() -> None:
    base = torch.tensor([1.0, 1.0, 1.0])
    models = [torch.tensor([2.0, 1.5, 1.0]), torch.tensor([0.0, 1.5, 1.0])]
    assert Ties(density=1)(models, base).tolist() == [1.0, 1.5, 1.0]


def test_ties_at_the_threshold_all_stay() -> None:
    base = torch.zeros(5)
    model = torch.tensor([3.0, -2.0, 2.0, 2.0, 1.0])
    assert Ties(density=0.4)([model], base).tolist() == [3.0, -2.0, 2.0, 2.0, 0.0]


def test_sce_by_hand() -> None:
    """Position 0 varies most, 1 not at all; of 2 the second model's part is erased."""
    base = torch.zeros(4)
    models = [torch.tensor([4.0, 1.0, 2.0, 0.0]), torch.tensor([0.0, 1.0, -1.0, 0.5])]
    # density 0.5 keeps positions 0 and 2: squares 20 and 1
    share = 20 / 21
    assert Sce(density=0.5)(models, base).tolist() == [4.0, 0.0, 2.0, 0.0]
    expected = [4 * share, 0.0, 2 * share, 0.0]
    assert Sce(density=0.5, normalise=False)(models, base).tolist() == pytest.approx(expected)


def test_one_scale_is_for_all_models() -> None:
    *tensors, base = draw(4)
    assert torch.equal(TaskArithmetic(scales=(0.3,))(tensors, base), TaskArithmetic(scales=(0.3,) * 3)(tensors, base))


def test_a_negative_scale_takes_a_task_away() -> None:
    base, delta = torch.ones(3), torch.tensor([0.5, -0.25, 0.0])
    assert TaskArithmetic(scales=(-1.0,))([base + delta], base).tolist() == [0.5, 1.25, 1.0]


# ---- random drops --------------------------------------------------------------------------------------------


def test_dare_expects_the_task_vectors_sum() -> None:
    *tensors, base = draw(3, shape=(200,))
    seeds, density = 100, 0.3
    mean = torch.stack([Dare(density=density, seed=s)(tensors, base) - base for s in range(seeds)]).double().mean(0)
    deltas = torch.stack([t - base for t in tensors]).double()
    deviation = (deltas.square().sum(0) * (1 / density - 1) / seeds).sqrt()
    assert ((mean - deltas.sum(0)).abs() < 5 * deviation).all()


def test_dare_keeps_the_share_it_was_told_to() -> None:
    base = torch.zeros(100_000)
    kept = float((Dare(density=0.1)([torch.ones_like(base)], base) != 0).float().mean())
    assert kept == pytest.approx(0.1, abs=0.005)


def test_dares_drops_depend_on_seed_name_and_model_alone() -> None:
    base, model = torch.zeros(1000), torch.ones(1000)
    first = Dare(seed=1)([model], base, "a")
    assert torch.equal(first, Dare(seed=1)([3 * model], base, "a") / 3)
    assert not torch.equal(first, Dare(seed=2)([model], base, "a"))
    assert not torch.equal(first, Dare(seed=1)([model], base, "b"))
    both = Dare(seed=1)([model, 100 * model], base, "a")
    assert torch.equal(both % 100, first)  # the second model's drops differ, and leave the first one's alone
    assert not torch.equal((both // 100) * 1.0, first)


def test_global_random_state_is_neither_read_nor_changed() -> None:
    base, model = torch.zeros(50), torch.ones(50)
    torch.manual_seed(0)
    first, after = Dare()([model], base), torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(7)
    assert torch.equal(Dare()([model], base), first)


# ---- many stretches, dtypes, shapes --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_tensors() -> list[Tensor]:
    return draw(3, shape=(LONG,), dtype=torch.bfloat16)


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
def test_stretches_join_to_the_merged_tensor(strategy: MergeStrategy, long_tensors: list[Tensor]) -> None:
    *tensors, base = long_tensors
    parts = list(strategy.stream(tensors, base if strategy.needs_base else None, "weight"))
    assert [len(part) for part in parts] == [STRETCH, STRETCH, 1001]
    assert torch.equal(torch.cat(parts), merge(strategy, tensors, base))


def test_a_threshold_is_that_of_the_whole_tensor(long_tensors: list[Tensor]) -> None:
    model, other, base = long_tensors
    kept = (model.float() - base.float()).abs()
    least = kept.sort(descending=True).values[round(0.2 * LONG) - 1]
    expected = torch.where(kept >= least, model, base)
    torch.testing.assert_close(Ties(density=0.2)([model], base), expected, rtol=0, atol=2**-21)  # 4 + x - 4 in fp32
    angle = torch.nn.functional.cosine_similarity(model.double(), other.double(), dim=0).acos()
    share = (0.5 * angle).sin() / angle.sin()
    merged = (share * model.double() + share * other.double()).float()
    torch.testing.assert_close(Slerp()([model.float(), other.float()]), merged)


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_has_the_bases_or_first_models_dtype_and_shape(strategy: MergeStrategy, dtype: torch.dtype) -> None:
    *tensors, base = draw(3, shape=(3, 2, 5), dtype=dtype)
    merged = merge(strategy, tensors, base)
    assert (merged.dtype, merged.shape) == (dtype, (3, 2, 5))
    epsilon = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    torch.testing.assert_close(
        merged.double(), define(strategy, tensors, base), rtol=2 * epsilon, atol=20 * torch.finfo(torch.float32).eps
    )


def test_models_of_other_dtypes_are_merged_into_the_bases() -> None:
    first, second, base = draw(3)
    merged = TaskArithmetic(scales=(0.5,))([first, second.half()], base.bfloat16())
    assert merged.dtype == torch.bfloat16


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 4)])
def test_scalars_and_empty_tensors_have_a_merged_one(strategy: MergeStrategy, shape: tuple[int, ...]) -> None:
    *tensors, base = draw(3, shape=shape)
    assert merge(strategy, tensors, base).shape == shape


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
def test_strided_tensors_are_merged_as_they_read_and_stay_unchanged(strategy: MergeStrategy) -> None:
    operands = [tensor.t() for tensor in draw(3)]
    before = [tensor.clone() for tensor in operands]
    *tensors, base = operands
    expected = merge(strategy, [t.contiguous() for t in tensors], base.contiguous())
    assert torch.equal(merge(strategy, tensors, base), expected)
    assert all(torch.equal(a, b) for a, b in zip(operands, before, strict=True))


@pytest.mark.parametrize("strategy", [Slerp(), Sce(density=0.3), Ties()], ids=repr)
def test_the_number_of_threads_changes_no_bit(strategy: MergeStrategy, long_tensors: list[Tensor]) -> None:
    *tensors, base = long_tensors
    found, threads = [], torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(merge(strategy, tensors, base))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_a_sum_is_the_same_for_any_number_of_threads() -> None:
    rows = torch.stack(draw(1, shape=(STRETCH,))).double().exp()  # with bits enough that sums are rounded
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = sum_exactly([rows])
        torch.set_num_threads(3)
        assert sum_exactly([rows]) == alone
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("strategy", EVERY, ids=repr)
def test_a_device_changes_no_more_than_rounding(strategy: MergeStrategy) -> None:
    *tensors, base = draw(3, shape=(300, 70))
    merged = merge(strategy, [t.to("cuda") for t in tensors], base.to("cuda"))
    assert merged.device.type == "cuda"
    torch.testing.assert_close(merged.cpu(), merge(strategy, tensors, base), rtol=1e-5, atol=1e-6)


# ---- whole-tensor measures -----------------------------------------------------------------------------------


def by_stretches(rows: Tensor) -> Callable[[], list[Tensor]]:
    return lambda: [rows[:, span] for span in spans(rows.shape[1])]


@given(bits=st.lists(st.lists(st.integers(0, 0x7F7FFFFF), min_size=7, max_size=7), min_size=1), k=st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_the_kth_largest_is_that_of_a_sorted_row(bits: list[list[int]], k: int) -> None:
    """Of any finite float32, subnormal or huge."""
    rows = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    found = find_kth_largest(by_stretches(rows), k)
    assert found.squeeze(1).tolist() == [sorted(row, reverse=True)[k - 1] for row in rows.tolist()]


@pytest.mark.parametrize("k", [1, 2, 1000, LONG // 2, LONG - 1, LONG])
def test_the_kth_largest_of_many_stretches_is_that_of_a_sorted_row(k: int) -> None:
    rows = torch.stack(draw(2, shape=(LONG,))).abs()
    expected = rows.sort(1, descending=True).values[:, k - 1 : k]
    assert torch.equal(find_kth_largest(by_stretches(rows), k), expected)


def test_sums_of_many_stretches_are_those_of_rounded_once_sums() -> None:
    rows = torch.stack(draw(2, shape=(LONG,)))
    found = sum_exactly(by_stretches(rows)())
    assert found == pytest.approx([math.fsum(row.tolist()) for row in rows], rel=1e-14)
    assert sum_exactly([]) == []


# ---- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", WITH_BASE, ids=repr)
def test_a_missing_base_is_named_with_the_way_out(strategy: MergeStrategy) -> None:
    with pytest.raises(ValueError, match="expected the base that the models were trained from, found none"):
        strategy(draw(2))


@pytest.mark.parametrize("strategy", WITHOUT_BASE, ids=repr)
def test_a_base_that_would_be_ignored_is_refused(strategy: MergeStrategy) -> None:
    with pytest.raises(ValueError, match="expected no base, found one; leave it out"):
        strategy(draw(2), draw(1)[0])


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
def test_no_model_at_all_is_refused(strategy: MergeStrategy) -> None:
    with pytest.raises(ValueError, match="expected at least 1 model to merge, found 0"):
        merge(strategy, [], torch.zeros(2))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Slerp(), "slerp: expected 2 models, found 3; merge more with linear"),
        (Linear(weights=(1, 2)), "linear: expected 3 weights, one per model, found 2"),
        (TaskArithmetic(scales=(1, 2)), "task_arithmetic: expected 3 scales, one per model, found 2"),
    ],
)
def test_a_number_of_models_that_does_not_fit_is_told_with_both_numbers(strategy: MergeStrategy, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strategy.check(3, has_base=strategy.needs_base)


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
def test_shapes_that_differ_are_told(strategy: MergeStrategy) -> None:
    with pytest.raises(ValueError, match=r"weight: expected one shape, found \[\(4, 9\), \(9, 4\)"):
        merge(strategy, [draw(1)[0], draw(1, shape=(9, 4))[0]], draw(1)[0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_told_with_its_model(value: float) -> None:
    *tensors, base = draw(3)
    tensors[1][2, 3] = value
    with pytest.raises(ValueError, match="q_proj of model 1: expected finite weights, found 1 NaN or infinite"):
        Linear()(tensors, name="q_proj")
    with pytest.raises(ValueError, match="q_proj of the base: expected finite weights, found 1"):
        Ties()([base], tensors[1], name="q_proj")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn])
def test_types_that_have_no_mean_are_refused(dtype: torch.dtype) -> None:
    tensors = [torch.ones(3).to(dtype)] * 2
    with pytest.raises(ValueError, match=f"expected float16, .* found {dtype}; dequantise"):
        Linear()(tensors)


def test_a_result_that_its_dtype_can_not_hold_is_refused() -> None:
    base, model = torch.ones(3).half(), torch.full((3,), 60000.0).half()
    with pytest.raises(ValueError, match=r"expected merged weights that torch.float16 can hold, found 1.2e\+05"):
        TaskArithmetic(scales=(2.0,))([model], base)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "linear", "weights": [0, 0]},
        {"kind": "linear", "weights": [1, -1]},
        {"kind": "slerp", "t": 1.5},
        {"kind": "task_arithmetic", "scales": []},
        {"kind": "ties", "density": 0},
        {"kind": "dare", "density": 1.1},
        {"kind": "sce", "density": math.nan},
        {"kind": "mean"},
    ],
)
def test_choices_that_mean_nothing_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(MergeStrategy).validate_python(fields)


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
def test_a_strategy_survives_json(strategy: MergeStrategy) -> None:
    assert TypeAdapter(MergeStrategy).validate_json(strategy.model_dump_json()) == strategy
