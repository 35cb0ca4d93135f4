"""What a run takes, reckoned."""

from dataclasses import replace

import pytest

from tasks.preflight.findings import Description
from tasks.preflight.needs import (
    Device,
    Plan,
    bytes_written,
    describe_needs,
    device_hours,
    memory_needed,
    reason_not_to_run,
)

MODEL = Description(
    tokens=100,
    roles={},
    chat_template=False,
    adds_prefix_space=False,
    normalizes=False,
    bytes_per_token=4,
    embedding_rows=128,
    window=512,
    parameters=1000,
)
TARGET = MODEL.model_copy(update={"parameters": 7_000_000_000, "embedding_rows": 32_000, "bytes_per_token": 4.0})
SOURCE = MODEL.model_copy(update={"parameters": 1_000_000_000, "embedding_rows": 50_432, "bytes_per_token": 2.0})
PLAN = Plan(
    corpus_bytes=4_000_000_000,
    row_bytes=100.0,
    dtype="bfloat16",
    batch_tokens=1000,
    epochs=2.0,
    trainings=2,
    flops=1e14,
    price_per_hour=None,
)


def test_seven_billion_parameters_take_112_gigabytes_to_train():
    needed = memory_needed(TARGET, {"mpt": SOURCE}, PLAN)
    assert needed["train"] == 112_000_000_000
    assert needed["extract mpt"] == 2_000_000_000 + 1000 * 50_432 * (2 + 4)


def test_hours_are_flops_over_speed():
    reading = 1e9 * 2 * 7e9 + 2e9 * 2 * 1e9  # a billion tokens of the target's, two billion of the source's
    training = 1e9 * 6 * 7e9 * 2 * 2
    assert device_hours(TARGET, {"mpt": SOURCE}, PLAN) == pytest.approx((reading + training) / 1e14 / 3600)


def test_every_distribution_is_counted():
    # extracted on each side, aligned on the target's rows, fused
    assert bytes_written(TARGET, {"mpt": SOURCE}, PLAN) == 100 * (1e9 + 2e9 + 1e9 + 1e9)


def test_what_is_unknown_is_not_made_up():
    assert bytes_written(TARGET, {}, replace(PLAN, corpus_bytes=None)) is None
    assert device_hours(TARGET, {"a": MODEL.model_copy(update={"parameters": None})}, PLAN) is None
    assert memory_needed(MODEL.model_copy(update={"parameters": None}), {}, PLAN) == {}


def test_what_does_not_fit_is_a_warning_with_both_sizes():
    needs, warnings = describe_needs(TARGET, {}, replace(PLAN, price_per_hour=2.0), [Device("small", 80_000_000_000)])
    assert warnings == ["train needs at least 112 GB on one device, and small has 80.0 GB; run it on a larger one"]
    assert needs["cost"].endswith("at 2 per device-hour")
    assert describe_needs(TARGET, {}, PLAN, [Device("large", 10**12)])[1] == []


@pytest.mark.parametrize(
    ("weights", "reason"),
    [(0, "no weights here"), (9 * 10**9, "9.0 GB of weights"), (4 * 10**9, "minutes on CPU"), (10**8, None)],
)
def test_only_small_models_are_run_over_a_sample(weights, reason):
    found = reason_not_to_run(weights, 40_000 if weights < 10**9 else 400_000, Device("CPU", 16 * 10**9))
    assert found is None if reason is None else reason in (found or "")
