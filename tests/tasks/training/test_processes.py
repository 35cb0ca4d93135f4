"""Two processes learn what one does, whether they hold all weights or a part of them."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tasks.runtime import TrainingRuntime
from tasks.train import train
from tasks.training.checkpoints import Checkpoints
from tasks.training.launch import run_child
from tasks.training.spec import TrainingJob, TrainingSpec
from tests.tasks.training.conftest import Lesson, assert_same_course, learn

pytestmark = pytest.mark.slow

SPEC = TrainingSpec(lm_weight=0.3, learning_rate=1e-3, batch_sequences=8, epochs=2)


def _gradients(checkpoint: Path) -> list[Tensor]:
    """Of the first step, without clipping: Adam's first moment is (1 - beta) times them."""
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    return [state[parameter]["exp_avg"] / (1 - SPEC.betas[0]) for parameter in sorted(state)]


class Enough(Exception):
    pass


def _checkpoint_here(lesson: Lesson, job: TrainingJob) -> Path:
    """The checkpoint of the first step, in this process."""

    def stop(done: int, total: int, message: str) -> None:
        if done == 2:
            raise Enough

    with pytest.raises(Enough):
        learn(job, stop)
    return _found(lesson, job)


def _checkpoint_of_children(lesson: Lesson, job: TrainingJob) -> Path:
    """The same, in processes that are killed after it."""
    with contextlib.closing(run_child(job, ["cpu"])) as records:
        next(record for record in records if record["done"] == 2)
    return _found(lesson, job)


def _found(lesson: Lesson, job: TrainingJob) -> Path:
    found = Checkpoints(lesson.store, job.address).newest()
    assert found is not None
    return found


def test_the_gradients_of_a_step_are_those_of_one_pass_on_one_process(lesson: Lesson, tmp_path: Path) -> None:
    """Also in a step that leaves a process without any sequence in its last pass."""
    spec = SPEC.model_copy(update={"max_grad_norm": 1e9, "batch_sequences": 13})
    one, cut, two = (
        lesson.job(spec, tmp_path / str(number), TrainingRuntime(checkpoint_seconds=0.0, **how))
        for number, how in enumerate(({}, {"micro_batch": 2}, {"micro_batch": 3, "processes": 2}))
    )
    expected = _gradients(_checkpoint_here(lesson, one))
    for checkpoint in (_checkpoint_here(lesson, cut), _checkpoint_of_children(lesson, two)):
        for found, gradient in zip(_gradients(checkpoint), expected, strict=True):
            torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()))


FSDP2 = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
use_cpu: true
num_machines: 1
num_processes: 2
machine_rank: 0
mixed_precision: 'no'
main_process_ip: 127.0.0.1
main_process_port: 0
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_cpu_ram_efficient_loading: true
"""


def test_two_processes_that_shard_the_weights_learn_what_one_does(lesson: Lesson, tmp_path: Path) -> None:
    one = learn(lesson.job(SPEC, tmp_path / "one"))
    (tmp_path / "accelerate.yaml").write_text(FSDP2)
    config = str(tmp_path / "accelerate.yaml")
    how = TrainingRuntime(processes=2, accelerate_config=config, micro_batch=3, checkpoint_seconds=0.0)
    runtime = lesson.runtime.model_copy(update={"training": how})
    ref = train.fn(lesson.target, lesson.shards, lesson.teachers, SPEC, runtime=runtime)
    two = lesson.facts(ref)
    architectures = json.loads((lesson.store.fetch(ref) / "config.json").read_text())["architectures"]
    assert (two["processes"], two["passes_per_step"]) == (2, 2)
    assert architectures == ["LlamaForCausalLM"]
    assert_same_course(two, one)
