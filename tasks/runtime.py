"""Where and how things run, which is never part of an identity."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.secrets import Address


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


class Runtime(BaseModel):
    """Where and how a run computes. Nothing in here changes what is computed."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    root: Address = Field(
        "./.llm-fuse",
        title="Store",
        description="Any fsspec URL: a folder or s3://bucket/prefix. Credentials don't belong into it.",
    )
    cache_dir: str | None = Field(
        None, title="Local cache", description="Where artifacts of a remote store are kept; default: the user's cache."
    )
    cache_bytes: int = Field(50 * 10**9, gt=0, title="Local cache size", description="Bytes; oldest files go first.")
    device: str = Field(
        "auto",
        title="Devices",
        description="cpu, mps, cuda:0, or several: cuda:0,cuda:2. cuda is every GPU; auto too, or what else there is. "
        "A GPU is used by one step at a time.",
    )
    batch_tokens: int | None = Field(
        None,
        gt=0,
        title="Tokens per batch",
        description="For extraction and evaluation; halved when memory runs out. Empty: what suits the device.",
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", title="Attention", description="Implementation while extracting; auto: what suits the model."
    )
    compile: bool = Field(False, title="Compile", description="torch.compile while extracting; pays for long shards.")
    spread: bool = Field(
        False, title="Spread over devices", description="While extracting: for models larger than one device."
    )
    compress: bool = Field(
        False,
        title="Compress distributions",
        description="What sources leave takes a third less in the store, and is read at half the speed.",
    )
    max_workers: int | None = Field(
        None,
        gt=0,
        title="Parallel tasks",
        description="Steps in work at once in this process. Empty: one for each device and one more.",
    )
    task_runner: Literal["threads", "ray", "dask"] = Field(
        "threads", title="Task runner", description="threads: this process; ray, dask: a cluster (an extra package)."
    )
    device_slots: str | None = Field(
        None, title="Device slots", description="Name of a Prefect concurrency limit that steps on a device wait for."
    )
    lease_seconds: float = Field(
        60.0, gt=0, title="Lease", description="How long a killed worker can block its shard for others."
    )
    model_code: bool = Field(
        False, title="Models' code", description="Python files of models may run; set by recipes that trust some."
    )
    training: TrainingRuntime = Field(
        TrainingRuntime(), title="Training", description="Processes, memory, checkpoints and logs of a training."
    )
