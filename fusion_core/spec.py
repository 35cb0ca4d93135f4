"""The base of every specification: a frozen, closed pydantic model.

A choice that changes what is computed (`MinCE`, `ByteBoundary`, `ForwardKL`) is a `Spec` that can be
called; a union of such choices is discriminated by its `kind`. Where and how something runs (device,
batch size, storage root) never lives in a `Spec`, so two specs are equal exactly when they describe
the same result.
"""

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Spec(BaseModel):
    """Frozen; unknown keys are errors; NaN and infinities are refused, since they have no stable JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


PINNED = "pinned"
"""Marks a field that only says where to look (`path: Annotated[str, PINNED]`): what was found there when a run
began stands in the identity instead of it."""

LATER = "later"
"""Marks a field that a later release added: at its default it isn't part of the identity, so that what was made before
it came keeps its identity."""


def check_name(name: str) -> str:
    """The name itself. Raises `ValueError` for one with characters that a terminal obeys or that reorder a line."""
    if odd := [letter for letter in name if unicodedata.category(letter) in _CONTROLS or letter in _REORDERING]:
        raise ValueError(f"expected a name of printable characters, found {odd[0]!a} in it; remove it")
    return name


_CONTROLS = {"Cc", "Cs", "Zl", "Zp"}
_REORDERING = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}

Name = Annotated[str, AfterValidator(check_name)]
"""What people call something: it stands in tables, labels, logs and pages."""
