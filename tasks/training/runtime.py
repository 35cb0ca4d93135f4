"""How a training is carried out: processes, memory, checkpoints. Nothing in here changes what is learned."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingRuntime(BaseModel):
    """Where and how the target is trained. The global batch is the recipe's; how it is cut up is said here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    processes: int = Field(1, gt=0, title="Processes", description="On this machine, one per device.")
    accelerate_config: str | None = Field(
        None,
        title="Accelerate configuration",
        description="File that `accelerate config` wrote, for FSDP2 or DeepSpeed. Its precision is the recipe's.",
    )
    micro_batch: int | None = Field(
        None,
        gt=0,
        title="Sequences per pass",
        description="Through one device at a time; gradients add up over the passes of a step. Empty: all in one.",
    )
    packing: int | None = Field(
        None,
        gt=0,
        title="Tokens per packed row",
        description="Sequences of a pass share rows of so many tokens instead of being padded; none sees another.",
    )
    gradient_checkpointing: bool = Field(
        False, title="Gradient checkpointing", description="Computes activations twice instead of keeping them."
    )
    checkpoint_seconds: float | None = Field(
        600.0,
        ge=0,
        title="Seconds between checkpoints",
        description="What a killed training loses. Empty: none are made.",
    )
    timeout_seconds: float | None = Field(
        None, gt=0, title="Time limit in seconds", description="A training that takes longer is killed."
    )
    log_dir: str | None = Field(
        None,
        title="TensorBoard folder",
        description="Empty: `tensorboard` below a local store, or below the local cache of a remote one.",
    )
    trackers: tuple[Literal["wandb", "mlflow"], ...] = Field(
        (), title="Trackers", description="That also get the curves, through transformers' integrations."
    )
