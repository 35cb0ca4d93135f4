"""How a training is carried out changes nothing but rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fusion_core.divergences import ReferenceCrossEntropy
from tasks.runtime import TrainingRuntime
from tasks.train import train
from tasks.training.batches import Collator
from tasks.training.examples import Examples, write_sequences
from tasks.training.failures import TrainingFailed
from tasks.training.network import check_packing
from tasks.training.spec import LoRA, TrainingSpec
from tests.tasks.training.conftest import Lesson, assert_same_course, learn, weights_of

SPEC = TrainingSpec(lm_weight=0.3, learning_rate=1e-3, batch_sequences=8, epochs=2)


@pytest.mark.parametrize("divergence", [SPEC.divergence, ReferenceCrossEntropy()], ids=lambda d: d.kind)
@pytest.mark.parametrize(
    "how",
    [
        {"micro_batch": 1},
        {"micro_batch": 3},
        {"packing": 128},
        {"packing": 128, "micro_batch": 3},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_cutting_up_and_laying_out_batches_changes_only_rounding(
    lesson: Lesson, tmp_path: Path, how: dict[str, Any], divergence: Any
) -> None:
    spec = SPEC.model_copy(update={"divergence": divergence})
    runtime = TrainingRuntime(checkpoint_seconds=None, **how)
    expected = learn(lesson.job(spec, tmp_path / "plain"))
    found = learn(lesson.job(spec, tmp_path / "other", runtime))
    assert found["passes_per_step"] == -(-8 // how.get("micro_batch", 8))
    assert_same_course(found, expected)


def test_a_packed_row_that_is_too_short_names_what_fits(lesson: Lesson, tmp_path: Path) -> None:
    job = lesson.job(SPEC, tmp_path / "job", TrainingRuntime(packing=8))
    with pytest.raises(
        ValueError, match=r"packing: expected rows that hold the longest sequence, found 8 tokens for one of"
    ):
        learn(job)


def test_a_model_in_which_packed_documents_see_each_other_is_refused(lesson: Lesson, tmp_path: Path) -> None:
    """With ALiBi nothing but the mask knows about positions."""
    from transformers import BloomConfig, BloomForCausalLM

    write_sequences(lesson.store, lesson.target, lesson.shards, tmp_path)
    examples = Examples(lesson.store, tmp_path, lesson.shards, [])
    sizes = {"vocab_size": 400, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = BloomForCausalLM(BloomConfig(**sizes))
    with pytest.raises(ValueError, match=r"packing: expected a packed document to cost what it costs alone"):
        check_packing(network, examples, Collator(400, packing=256))
    check_packing(network, examples, Collator(400))


def test_an_adapter_is_merged_and_leaves_the_other_weights_alone(lesson: Lesson, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    adapter = LoRA(rank=4, targets=("q_proj",))
    spec = SPEC.model_copy(update={"adapter": adapter, "batch_sequences": 100, "epochs": 3, "learning_rate": 1e-2})
    job, again = lesson.job(spec, tmp_path / "job"), lesson.job(spec, tmp_path / "again")
    facts = learn(job)
    assert facts["losses"][-1]["loss"] < facts["losses"][0]["loss"]
    learn(again)
    before = load_file(lesson.store.fetch(lesson.target) / "model.safetensors")
    after = weights_of(job)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert changed == {name for name in before if "q_proj" in name}
    assert (job.output / "model.safetensors").read_bytes() == (again.output / "model.safetensors").read_bytes()


def test_bfloat16_weights_stay_near_float32_and_are_saved_as_such(lesson: Lesson, tmp_path: Path) -> None:
    exact = lesson.job(SPEC, tmp_path / "exact")
    half = lesson.job(SPEC.model_copy(update={"weights": "bfloat16"}), tmp_path / "half")
    mixed = lesson.job(SPEC.model_copy(update={"dtype": "bfloat16"}), tmp_path / "mixed")
    expected = learn(exact)["train_loss"]
    for job in (half, mixed):
        found = learn(job)["train_loss"]
        assert found == pytest.approx(expected, abs=0.02)
        assert found != expected
    assert {w.dtype for w in weights_of(half).values()} == {torch.bfloat16}
    assert {w.dtype for w in weights_of(mixed).values()} == {torch.float32}


def test_a_loss_that_is_no_number_names_step_documents_and_checkpoint(lesson: Lesson, tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"learning_rate": 1e30, "max_grad_norm": 1e30, "warmup_share": 0.0})
    job = lesson.job(spec, tmp_path / "job")
    with pytest.raises(
        TrainingFailed, match=r"finite loss, found nan at step \d of 4, learning from .+ \(last good checkpoint: none\)"
    ):
        learn(job)


def test_a_last_step_that_ruins_the_weights_leaves_no_model(lesson: Lesson, tmp_path: Path) -> None:
    """The loss of a step is told before its update."""
    spec = SPEC.model_copy(
        update={
            "learning_rate": 1e39,
            "max_grad_norm": 1e30,
            "warmup_share": 0.0,
            "batch_sequences": 10_000,
            "epochs": 1,
        }
    )
    job = lesson.job(spec, tmp_path / "job")
    with pytest.raises(TrainingFailed, match=r"finite weights, found nan or infinity at step 1 of 1, learning from"):
        learn(job)
    assert not (job.output / "model.safetensors").exists()


def test_the_precision_is_the_recipes_whatever_a_launcher_says(
    lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = learn(lesson.job(SPEC, tmp_path / "plain"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert learn(lesson.job(SPEC, tmp_path / "other"))["losses"] == expected["losses"]


def test_a_training_over_its_time_is_killed(lesson: Lesson) -> None:
    runtime = lesson.runtime.model_copy(update={"training": TrainingRuntime(timeout_seconds=0.2)})
    with pytest.raises(TrainingFailed, match=r"within 0\.2 seconds, found it before the first step; raise runtime"):
        train.fn(lesson.target, lesson.shards, lesson.teachers, SPEC, runtime=runtime)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"trackers": ("mlflow",)}, "trackers: expected the package mlflow, found none; pip install mlflow"),
        ({"accelerate_config": "/nowhere.yaml"}, "accelerate_config: expected a file, found none at /nowhere.yaml"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_starts(lesson: Lesson, how: dict[str, Any], message: str) -> None:
    runtime = lesson.runtime.model_copy(update={"training": TrainingRuntime(**how)})
    with pytest.raises(ValueError, match=message):
        train.fn(lesson.target, lesson.shards, lesson.teachers, SPEC, runtime=runtime)
