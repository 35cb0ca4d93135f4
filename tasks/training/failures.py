"""A training that ended without a model, though neither the recipe nor this code is wrong."""


class TrainingFailed(Exception):
    """The training ended without a model; the message says why, and the way out. Never retried."""
