"""The base of every specification: a frozen, closed pydantic model.

A choice that changes what is computed (`MinCE`, `ByteBoundary`, `ForwardKL`) is a `Spec` that can be
called; a union of such choices is discriminated by its `kind`. Where and how something runs (device,
batch size, storage root) never lives in a `Spec`, so two specs are equal exactly when they describe
the same result.
"""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """Frozen; unknown keys are errors; NaN and infinities are refused, since they have no stable JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


PINNED = "pinned"
"""Marks a field that only says where to look (`path: Annotated[str, PINNED]`): what was found there when a run
began stands in the identity instead of it."""
