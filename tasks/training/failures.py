"""A training that ended without a model, though neither the recipe nor this code is wrong."""

MEMORY_WAYS = (
    "set runtime.training.micro_batch lower, turn on runtime.training.gradient_checkpointing, "
    "or choose training.weights bfloat16 or an adapter"
)


class TrainingFailed(Exception):
    """The training ended without a model; the message says why, and the way out. Never retried."""
