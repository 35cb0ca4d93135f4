"""What is trained: the objective, its optimisation, and the job that a child process is told."""

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, Field

from fusion_core.divergences import Divergence, SoftCrossEntropy
from fusion_core.losses import raise_lm_weight
from fusion_core.spec import Spec
from tasks.artifacts import FusedRef, ModelRef, Runtime, ShardRef
from tasks.engines import Dtype


class LoRA(Spec):
    """Low-rank updates beside frozen weights, added to them when the model is saved (Hu et al. 2021, LoRA).

    The frozen weights keep the precision of `TrainingSpec.weights`; frozen in four bits (Dettmers et al. 2023, QLoRA)
    they could not be added to without rounding, and that isn't offered.
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, gt=0, title="Rank", description="Of the updates; higher learns more and takes more.")
    alpha: int = Field(32, gt=0, title="Alpha", description="Updates are scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, title="Dropout", description="Share of what goes into the updates.")
    targets: tuple[str, ...] = Field(
        (), title="Layers", description="Names of linear layers; empty: all of them but the head."
    )


class TrainingSpec(Spec):
    """The objective and its optimisation. Defaults are the paper's where it names them."""

    lm_weight: float = Field(0.9, ge=0, le=1, title="Weight of language modelling", description="1: no teacher at all.")
    lm_weight_schedule: Literal["fixed", "rising"] = Field(
        "fixed",
        title="Course of that weight",
        description="rising: linearly from lm_weight to 1 over all steps, so that the teacher fades out.",
    )
    divergence: Divergence = Field(
        SoftCrossEntropy(),
        title="Divergence from the teacher",
        description="How a distribution is compared with the teacher's.",
    )
    epochs: float = Field(1.0, gt=0, title="Epochs", description="How often the corpus is seen.")
    learning_rate: float = Field(1e-5, gt=0, title="Learning rate", description="Its highest value.")
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = Field(
        "cosine", title="Schedule", description="How the learning rate falls after the warm-up."
    )
    warmup_share: float = Field(0.008, ge=0, lt=1, title="Warm-up", description="Share of all steps.")
    batch_sequences: int = Field(
        128, gt=0, title="Sequences per step", description="Documents, on all devices together."
    )
    betas: tuple[float, float] = Field((0.9, 0.95), title="Adam betas", description="Decay of the running means.")
    weight_decay: float = Field(0.1, ge=0, title="Weight decay", description="As AdamW has it.")
    max_grad_norm: float = Field(1.0, gt=0, title="Gradient clip", description="Largest norm of a step's gradient.")
    dtype: Dtype = Field("float32", title="Precision", description="bfloat16 and float16 train in mixed precision.")
    weights: Literal["float32", "bfloat16"] = Field(
        "float32",
        title="Precision of the weights",
        description="bfloat16: half the memory for weights, gradients and optimiser; small updates are rounded away.",
    )
    adapter: LoRA | None = Field(None, title="Adapter", description="Trains small matrices beside frozen weights.")
    seed: int = Field(0, ge=0, title="Seed", description="Of the data order and of adapters.")

    def without_teacher(self) -> Self:
        """The same optimisation of language modelling alone; what concerned the teacher is back at its default."""
        defaults = type(self)()
        update = {"lm_weight_schedule": defaults.lm_weight_schedule, "divergence": defaults.divergence}
        return self.model_copy(update={"lm_weight": 1.0, **update})

    def lm_weight_at(self, step: int, max_steps: int) -> float:
        """The weight of language modelling at a step, the first being 0."""
        if self.lm_weight_schedule == "fixed":
            return self.lm_weight
        return raise_lm_weight(self.lm_weight, step, max_steps)


class TrainingJob(BaseModel):
    """What the child is told: addresses, the objective, and where to leave the model.

    address: of the model to be, below which its checkpoints lie. resume: the folder of a checkpoint to go on from;
    the newest complete one when it isn't named. owner: the process that wants the model and that the child ends with,
    if there is one on this machine.
    """

    model: ModelRef
    shards: list[ShardRef]
    teachers: list[FusedRef]
    spec: TrainingSpec
    runtime: Runtime
    output: Path
    address: str
    resume: Path | None = None
    owner: int | None = None

    @property
    def work(self) -> Path:
        """A folder beside the output for what is gone afterwards; each machine's own."""
        return self.output.parent / f".{self.output.name}-trainer-{os.environ.get('GROUP_RANK', '0')}"
