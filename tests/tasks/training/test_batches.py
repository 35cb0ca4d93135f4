"""Which sequences a step learns from, how they are cut into passes, and what a pass holds."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion_core.types import TokenDist
from tasks.training.batches import Collator, Example, Passes, Plan
from tasks.training.course import Course
from tasks.training.spec import TrainingSpec

COUNTS = st.integers(1, 40)


@given(COUNTS, COUNTS, st.floats(0.1, 3.0), st.integers(0, 9))
def test_every_epoch_shows_every_sequence_once(count: int, batch: int, epochs: float, seed: int) -> None:
    plan = Plan(count, batch, epochs, seed)
    for epoch in range(plan.num_steps // plan.epoch_steps):
        steps = [plan.step(epoch * plan.epoch_steps + n) for n in range(plan.epoch_steps)]
        assert sorted(itertools.chain(*steps)) == list(range(count))
        assert all(len(step) == batch for step in steps[:-1])


def test_epochs_and_seeds_differ_in_order() -> None:
    plan = Plan(30, 30, 2, 0)
    assert plan.step(0) != plan.step(1)
    assert plan.step(0) != Plan(30, 30, 2, 5).step(0)


@given(COUNTS, COUNTS, st.integers(1, 5), st.none() | COUNTS)
def test_passes_of_all_processes_are_the_steps_of_the_plan(
    count: int, batch: int, processes: int, micro_batch: int | None
) -> None:
    plan = Plan(count, batch, 1.5, 0)
    passes = [list(Passes(plan, processes, rank, micro_batch)) for rank in range(processes)]
    parts = Passes(plan, processes, 0, micro_batch)
    assert {len(of_one) for of_one in passes} == {len(parts)} == {plan.num_steps * parts.accumulation}
    for number in range(plan.num_steps):
        turns = range(number * parts.accumulation, (number + 1) * parts.accumulation)
        shares = (passes[rank][turn] for turn in turns for rank in range(processes))
        assert list(itertools.chain(*shares)) == plan.step(number)
    assert max(len(p) for of_one in passes for p in of_one) <= min(parts.size, micro_batch or count)


def test_a_corpus_without_sequences_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one sequence of two tokens, found none"):
        Plan.of(TrainingSpec(), 0)


def _examples(lengths: list[int]) -> list[Example]:
    """Sequence n has the tokens 10 n, 10 n + 1, ...; its teacher's row at token t is sure of token t."""
    examples = []
    for n, length in enumerate(lengths):
        ids = 10 * n + torch.arange(length)
        nothing = torch.full((length,), -torch.inf)
        teacher = TokenDist(torch.arange(length + 1), ids, torch.zeros(length), nothing, nothing, vocab_size=100)
        examples.append(Example(n, ids, teacher, n, torch.ones_like(ids, dtype=torch.bool)))
    return examples


@pytest.mark.parametrize("packing", [None, 9])
@pytest.mark.parametrize("every_token", [False, True])
def test_rows_labels_and_teacher_stay_together(packing: int | None, every_token: bool) -> None:
    batch = Collator(100, every_token, packing)(_examples([4, 6, 3, 2]))
    ids, kept, labels, teacher = batch["input_ids"], batch["kept"], batch["labels"], batch["teacher"]
    assert torch.equal(teacher.ids, ids[kept])
    has_label = labels != -100
    assert torch.equal(labels[has_label], ids[kept][has_label] + 1)
    assert int(has_label.sum()) == 3 + 5 + 2 + 1
    assert len(labels) == (15 if every_token else 11)
    assert batch["num_tokens"] == 15
    assert sorted(batch["numbers"].tolist()) == [0, 1, 2, 3]


def test_packed_rows_are_filled_and_positions_begin_anew() -> None:
    batch = Collator(100, packing=9)(_examples([4, 6, 3, 2]))
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3, 20, 21, 22, 30, 31], [10, 11, 12, 13, 14, 15, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5, 0, 0, 0]]
    assert "attention_mask" not in batch


def test_a_pass_without_sequences_has_a_row_and_nothing_to_learn() -> None:
    batch = Collator(100)([])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (1, 1)
    assert batch["labels"].shape == (0,)
    assert batch["teacher"].num_rows == batch["num_tokens"] == int(batch["marks"].sum()) == 0


def test_the_course_is_the_same_after_a_pause() -> None:
    whole, before = Course(), Course()
    for loss, marks in ((3.1, 5), (2.9, 7)):
        whole.add_step(loss, marks, 10)
        before.add_step(loss, marks, 10)
    after = Course.model_validate_json(before.model_dump_json())
    for course in (whole, after):
        course.add_step(0.1, 9, 10)
    assert after == whole
    assert after.close_window() == (3.1 + 2.9 + 0.1) / 3
    assert after.window_steps == 0


def test_the_digest_tells_the_order_of_steps() -> None:
    first, second = Course(), Course()
    for marks in (1, 2):
        first.add_step(1.0, marks, 1)
    for marks in (2, 1):
        second.add_step(1.0, marks, 1)
    assert first.digest != second.digest
